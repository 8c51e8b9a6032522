"""A real pretrained model, stories260K of llama2.c (MIT): its text, its perplexity, and files that are rejected."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import __main__ as command_line
from jaxspec.loading.store import load_model, open_model, save_model
from jaxspec.training import hidden_states, log_probabilities

DATA = Path(__file__).parents[2] / "data" / "stories260K"
BIN, TOKENIZER = DATA / "stories260K.bin", DATA / "tok512.model"
#: What run.c of llama2.c writes at temperature 0.
STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
    "She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" Lily was sad "
    "and didn't know what to do"
)
TALE = (
    "Tom had a small boat. One day, he took his boat to the lake. The sun was warm and the water was blue. A big fish "
    'saw the boat and said, "Can I play with you?" Tom was happy. He said, "Yes, we can be friends!" They played all '
    "day. When it was late, Tom went home and told his mom about the fish."
)
#: Of every piece of ``TALE`` after those before it.
PERPLEXITY = 3.906


@pytest.fixture(scope="module")
def model():
    return jaxspec.load_llama2c(BIN, TOKENIZER)


def logits(model, ids):
    network, params, _ = model
    return network.logits(params, hidden_states(network, params, jnp.asarray(ids)[None])[-1])


def test_a_fluent_story(model):
    result = jaxspec.generate(jaxspec.autoregressive(model), ["Once upon a time"], 100)
    assert result.text == [STORY]
    assert len(result.tokens[0]) == 100


def test_a_story_ends_where_the_next_would_begin(model):
    result = jaxspec.generate(jaxspec.autoregressive(model), ["Once upon a time"], 400)
    assert result.finish_reason == ["stop"]
    assert result.tokens[0][-1] in model.text.stop
    assert result.text[0].startswith(STORY)
    assert result.text[0].endswith((".", '"', "!"))


@pytest.mark.parametrize("count", [0, 2])
def test_a_story_ends_without_a_tokenizer_too(model, tmp_path, count):
    """No tokenizer next to it, or several, of which none is used."""
    for name in ("stories.bin", *(f"{number}.model" for number in range(count))):
        (tmp_path / name).symlink_to(BIN if name.endswith("bin") else TOKENIZER)
    loaded = open_model(tmp_path / "stories.bin")
    assert loaded.text.stop == model.text.stop
    save_model(loaded, tmp_path / "saved")
    assert load_model(tmp_path / "saved").text.stop == model.text.stop


def test_the_command_line_keeps_the_space_after_the_prompt(capsys):
    command_line.main(["generate", "--target", str(BIN), "--prompt", "Once upon a", "--max-new-tokens", "3"])
    assert capsys.readouterr().out.startswith("Once upon a time, there\n")


def test_perplexity_of_a_tale(model):
    ids = model.text.encode(TALE)
    assert model.text.decode(ids) == TALE
    values = np.asarray(log_probabilities(model.network, model.params, jnp.asarray(ids)[None]))[:, 0]
    perplexity = np.exp(-np.mean(values[ids[1:], np.arange(len(ids) - 1)], dtype=np.float64))
    np.testing.assert_allclose(perplexity, PERPLEXITY, rtol=1e-3)


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data[:-3], lambda data: data + b"1234"])
def test_a_file_of_another_size_is_refused(tmp_path, change):
    (tmp_path / "cut.bin").write_bytes(change(BIN.read_bytes()))
    with pytest.raises(ValueError, match=r"expected 1056540 bytes for these sizes, got 10565\d\d"):
        jaxspec.load_llama2c(tmp_path / "cut.bin")


@pytest.mark.parametrize("data", [b"", b"just a text, no weights, nothing of the kind", b"ak42" + bytes(300)])
def test_another_kind_of_file_is_refused(tmp_path, data):
    (tmp_path / "other.bin").write_bytes(data)
    with pytest.raises(ValueError, match="expected the seven sizes of a llama2.c v0 file"):
        jaxspec.load_llama2c(tmp_path / "other.bin")


def test_sizes_that_make_no_model_are_refused(tmp_path):
    (tmp_path / "odd.bin").write_bytes(np.asarray([64, 172, 5, 7, 3, 512, 512], np.int32).tobytes())
    with pytest.raises(ValueError, match="heads"):
        jaxspec.load_llama2c(tmp_path / "odd.bin")


def test_a_head_of_its_own(tmp_path):
    """A negative vocabulary size means that a head follows the tables of rotary positions."""
    header, values = np.fromfile(BIN, np.int32, 7), np.fromfile(BIN, np.float32, offset=28)
    header[5] *= -1
    head = values[: 512 * 64] * np.float32(2)
    (tmp_path / "untied.bin").write_bytes(header.tobytes() + values.tobytes() + head.tobytes())
    tied, untied = jaxspec.load_llama2c(BIN), jaxspec.load_llama2c(tmp_path / "untied.bin")
    ids = np.arange(5, 25)
    np.testing.assert_allclose(logits(untied, ids), 2 * logits(tied, ids), rtol=1e-5, atol=1e-4)


def test_as_a_published_checkpoint(model, tmp_path):
    jaxspec.save_huggingface(model, tmp_path)
    loaded = jaxspec.load_huggingface(tmp_path)
    ids = model.text.encode(TALE)
    np.testing.assert_array_equal(logits(loaded, ids), logits(model, ids))
    np.testing.assert_array_equal(loaded.text.encode(TALE), ids)
    assert loaded.text.decode(ids) == TALE
    assert loaded.text.stop == model.text.stop
