"""Trained exits in a file: the same messages after reading, and errors that say what is wrong."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxspec
from jaxspec.loading import Exit, load_exit, load_exits, save_exits
from jaxspec.verify import init_frequent_lens
from jaxspec.verify.message import exit_message
from tests.support.jaxspec import models

IDS = np.asarray([0, 2, 3, 7, 8], np.int32)


def head(seed=0):
    fresh = init_frequent_lens(models.target(), IDS, 4, jax.random.key(seed))
    return fresh._replace(up=jax.random.normal(jax.random.key(seed + 9), fresh.up.shape))


@pytest.fixture
def folder(tmp_path):
    save_exits([Exit(2, head(), {"contained": {"8": 0.5}}), Exit(3, head(1))], tmp_path)
    return tmp_path


def test_a_saved_exit_sends_the_same_messages(folder):
    target, x = models.target(), jax.random.normal(jax.random.key(3), (16, 2, 4))
    for layer, own in ((2, head()), (3, head(1))):
        found = load_exit(folder, target, layer)
        messages = [
            exit_message(each(target.network, target.params, x), np.asarray([[1, 2, 3], [7, 7, 0]]), 3)
            for each in (own, found.head)
        ]
        jax.tree.map(np.testing.assert_array_equal, *messages)
    assert set(np.unique(messages[0].tokens)) <= set(IDS)


def test_the_first_exit_is_the_default(folder):
    assert jaxspec.load_exit(folder).layer == 2
    assert jaxspec.load_exit(folder / "lens.safetensors").figures == {"contained": {"8": 0.5}}
    assert [exit.layer for exit in load_exits(folder, models.target())] == [2, 3]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_is_that_of_plain_decoding(temperature, folder):
    exit = load_exit(folder, models.target())
    plain, mirror = (
        jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, temperature=temperature).tokens
        for method in (
            jaxspec.autoregressive(models.target()),
            models.mirror(exit=exit.head, exit_layer=exit.layer, num_candidates=4),
        )
    )
    assert mirror == plain


def test_more_candidates_than_the_exit_can_send_are_refused(folder):
    with pytest.raises(ValueError, match="expected num_candidates <= 4, since the exit has 5 tokens, got 5"):
        models.mirror(exit=load_exit(folder).head, num_candidates=5)


def test_errors_name_the_file(folder):
    with pytest.raises(ValueError, match="expected an exit_layer of 2, 3, whose exits are trained, got 1"):
        load_exit(folder, layer=1)
    with pytest.raises(ValueError, match=r"lens.safetensors: expected exits of this target, of width 8"):
        load_exit(folder, models.stranger())
    with pytest.raises(FileNotFoundError, match=r"expected exits written by jaxspec train lens"):
        load_exit(folder / "nothing")
    file = folder / "lens.safetensors"
    arrays = load_file(file)
    save_file(arrays, file)
    with pytest.raises(ValueError, match=r"lens.safetensors: expected exits written by jaxspec train lens"):
        load_exit(folder)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"lens.safetensors: expected exits written by jaxspec train lens"):
        load_exit(folder)


def test_exits_in_the_folder_of_a_model_are_no_weights_of_it(folder, tmp_path):
    model = tmp_path / "model"
    jaxspec.save_huggingface(models.target(), model)
    (model / "model.safetensors").rename(model / "weights.safetensors")
    save_exits([Exit(2, head())], model)
    assert jaxspec.load_huggingface(model).network.config.num_layers == 4
