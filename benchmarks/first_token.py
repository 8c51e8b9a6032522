"""How soon is there a first token? Whole prompts, and a second process, beside transformers on the same weights.

    python benchmarks/first_token.py [--target models/smollm2] [--tokens 256 1024] [--rounds 7] [--json]

``prompt``: seconds of a prompt of so many tokens until its next token is known, both sides compiled and warm, in turns,
medians; float32, torch with one and with two threads, the better counts. ``ratio`` = transformers' / ours. ``process``:
seconds of a whole new process that loads the model and writes one token of an answer, ours by ``python -m jaxspec
generate`` with the compiled programs of an earlier process, in turns, medians; ``ratio`` = ours / transformers'.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from machine import in_turns

import jaxspec
from jaxspec.generation.requests import request_of

QUESTION = "Why is the sky blue?"
#: What a user of transformers writes.
THEIRS = """
import sys
import torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:]))
"""


def prompt_line(target: Path, model: jaxspec.Model, tokens: int, rounds: int) -> dict[str, Any]:
    """Time whole prompts."""
    import torch
    import transformers

    ids = np.random.default_rng(0).integers(1000, 20_000, tokens).tolist()
    method = jaxspec.autoregressive(model)
    request, capacity = request_of([np.asarray(ids, np.int32)], method, 8, jaxspec.Sampling(), 2048)

    def ours() -> None:
        state = method.init(request, capacity)
        jax.block_until_ready(method.step(state)[1].packed)

    theirs_model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()

    def theirs(threads: int) -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            theirs_model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    sides: dict[str, Callable[[], None]] = {"ours": ours} | {f"torch {n}": partial(theirs, n) for n in (1, 2)}
    medians = in_turns(sides, rounds, f"{tokens} tokens")
    best = min(medians["torch 1"], medians["torch 2"])
    own = medians["ours"]
    return {"kind": "prompt", "tokens": tokens, "seconds": own, "transformers_seconds": best, "ratio": best / own}


def process_line(target: Path, rounds: int) -> dict[str, Any]:
    """Time whole processes; the first of each fills caches of files and programs."""
    options = ["--target", str(target), "--prompt", QUESTION, "--chat", "--max-new-tokens", "1"]
    ours = [sys.executable, "-m", "jaxspec", "generate", *options]
    theirs = [sys.executable, "-c", THEIRS, str(target), QUESTION]
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    medians = in_turns({"ours": partial(run, ours), "theirs": partial(run, theirs)}, rounds, "processes")
    own, other = medians["ours"], medians["theirs"]
    return {"kind": "process", "tokens": 1, "seconds": own, "transformers_seconds": other, "ratio": own / other}


def lines(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield all lines."""
    yield process_line(options.target, options.rounds)
    model = jaxspec.load_huggingface(options.target)
    for tokens in options.tokens:
        yield prompt_line(options.target, model, tokens, options.rounds)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="has no effect: lines are JSON")
    for line in lines(parser.parse_args()):
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()}
        print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
