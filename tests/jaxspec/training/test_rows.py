"""Batches of texts of unequal lengths, and the target's hidden states along them, stored without padding."""

import numpy as np
import pytest

from jaxspec.text import Continued
from jaxspec.text.prompts import behind, without_prompts
from jaxspec.training import hidden_states
from jaxspec.training._fit import Schedule, within
from jaxspec.training._hidden import hidden_bytes, stored_hidden
from jaxspec.training._rows import TextRows
from tests.support.jaxspec import models

LENGTHS, STARTS = (5, 12, 9, 12, 3), np.asarray([2, 4, 3, 1, 2])


def texts():
    tokens = np.full((5, 12), -1, np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = np.random.default_rng(row).integers(models.VOCAB, size=length)
    return Continued(tokens, STARTS)


def test_places_behind_prompts():
    found = behind(STARTS, (5, 12))
    assert found.sum(axis=1).tolist() == (12 - STARTS).tolist()
    values = np.arange(60).reshape(5, 12)
    moved = without_prompts(values, STARTS, -1)
    assert moved.shape == (5, 11)
    for row, start in enumerate(STARTS):
        assert moved[row].tolist() == [*values[row, start:], *[-1] * (start - 1)]
    np.testing.assert_array_equal(without_prompts(values, 3), values[:, 3:])


def test_some_rows_keep_the_length_of_their_answers():
    data = texts()
    assert data.most == 12 - 4
    some = data.rows(np.asarray([0, 2]))
    assert some.most == data.most
    assert some.tokens.shape == (2, 3 + 8)
    np.testing.assert_array_equal(some.starts, [2, 3])


def test_hidden_states_are_those_of_every_text_alone(tmp_path):
    target, data = models.target(), texts()
    found = stored_hidden(target, (1, 3), data.tokens, tmp_path, batch_size=2)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == hidden_bytes(target, (1, 3), data.tokens) == sum(LENGTHS) * 3 * 16 * 4
    for row, length in enumerate(LENGTHS):
        states = hidden_states(target.network, target.params, data.tokens[row : row + 1, :length], (1, 3))
        expected = np.moveaxis(np.stack(states)[:, :, 0], 1, 2)
        np.testing.assert_allclose(found.window(row, 0, length), expected, atol=1e-4)
        later = found.window(row, 2, 12)
        np.testing.assert_allclose(later[:, : length - 2], expected[:, 2:], atol=1e-4)
        assert not later[:, length - 2 :].any()
    fewer = stored_hidden(target, (3,), data.tokens, tmp_path)
    np.testing.assert_array_equal(fewer.window(1, 0, 12), found.window(1, 0, 12)[1:])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("length", [6, 12, 99])
def test_batches_are_windows_of_rows(length, tmp_path):
    data = texts()
    rows = TextRows(data, stored_hidden(models.target(), (), data.tokens, tmp_path), length)
    batch, again = rows.batch(16, 3, 5), rows.batch(16, 3, 5)
    for name, values in batch.items():
        np.testing.assert_array_equal(values, again[name])
    assert batch["tokens"].shape == (16, min(length, 12))
    assert batch["hidden"].shape == (1, 16, min(length, 12), 16)
    whole = {tuple(row[:size]): start for row, size, start in zip(data.tokens.tolist(), LENGTHS, STARTS, strict=True)}
    for tokens, mask in zip(batch["tokens"].tolist(), batch["mask"], strict=True):
        part = tuple(token for token in tokens if token >= 0)
        places = [
            (at, start)
            for row, start in whole.items()
            for at in range(len(row) - len(part) + 1)
            if row[at : at + len(part)] == part
        ]
        assert any(mask.tolist() == [at + i >= start for i in range(len(mask))] for at, start in places)


def test_minutes_become_steps_which_are_kept(tmp_path):
    def loss(params, batch, key):
        return (params["x"] - batch["y"]) ** 2, {}

    params, batch = {"x": np.float32(1.0)}, lambda step: {"y": np.float32(step)}
    schedule = Schedule(minutes=1e-3)
    found = within(schedule, loss, params, batch, tmp_path)
    assert found.steps >= 1
    assert found.warmup <= -(-found.steps // 10)
    assert within(schedule, loss, params, batch, tmp_path).steps == found.steps
    assert within(Schedule(steps=7), loss, params, batch).steps == 7
