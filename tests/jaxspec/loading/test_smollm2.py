"""A real language model, SmolLM2-135M-Instruct: its tokens are those of transformers. Skipped where it is absent."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.training import hidden_states
from jaxspec.zoo.recipe import held_out_roles

FOLDER = Path(__file__).parents[3] / "models/smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.optimised,
    pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="models/smollm2 is absent: make smollm2"),
]
NEW_TOKENS = 128
ASKED = """What is the capital of France?
Write a haiku about rain.
Explain photosynthesis to a child.
List five primes.
Translate 'good morning' into Spanish.
What is 12 times 12?
Name three planets.
Who wrote Hamlet?
Give me a recipe for pancakes.
Why is the sky blue?""".splitlines()
RAW = [
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village,",
    "The three laws of motion are",
    "import numpy as np\n",
    "Q: How many legs has a spider?\nA:",
    "1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\n",
    "The recipe needs two eggs,",
    "In 1969, the first",
    "<html>\n<body>\n",
]
#: exp of the mean loss over the first 512 tokens of a role that is held out, by transformers 5.23 in float32.
PERPLEXITY = 83.939


@pytest.fixture(scope="module")
def model():
    return jaxspec.load_huggingface(FOLDER)


def test_it_answers(model):
    """Conversation, stop token and text."""
    asked = [[{"role": "user", "content": ASKED[0]}]]
    out = jaxspec.generate(jaxspec.autoregressive(model), asked, 32)
    assert out.text[0] == "The capital of France is Paris."
    assert out.finish_reason == ["stop"]
    assert jaxspec.generate(jaxspec.lookup(model), asked, 32).tokens == out.tokens


def test_perplexity(model):
    text = model.text.encode(held_out_roles()[0].text)[None, :512]
    logits = model.network.logits(model.params, hidden_states(model.network, model.params, text)[-1])[:, 0, :-1]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=0), jnp.asarray(text[:, 1:]), axis=0)
    assert float(jnp.exp(losses.mean())) == pytest.approx(PERPLEXITY, rel=1e-4)


@pytest.mark.peers
def test_greedy_tokens_are_those_of_transformers(model):
    """Twenty prompts of 128 tokens: after ours, each is the likeliest there."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    prompts = [model.text.chat([{"role": "user", "content": text}]).tolist() for text in ASKED]
    prompts += [model.text.encode(text).tolist() for text in RAW]
    ours = jaxspec.generate(jaxspec.autoregressive(model), prompts, NEW_TOKENS, stop=[]).tokens
    for prompt, tokens in zip(prompts, ours, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].numpy()
        best = logits.argmax(axis=-1)
        gaps = {at: logits[at, best[at]] - logits[at, tokens[at]] for at in np.flatnonzero(best != tokens)}
        assert not gaps, f"after {prompt}: other tokens, and how far theirs are above ours: {gaps}"
