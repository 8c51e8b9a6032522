"""Questions that a model asks itself: drawn behind the beginning of a user's message."""

import numpy as np
import pytest

import jaxspec
from jaxspec.generation import own_questions
from jaxspec.text import Text
from tests.support.jaxspec import models

LETTERS = "0123456789?"
STOP = 9
TEMPLATE = "{% for message in messages %}12{{ message.content }}34{% endfor %}"


def encode(text):
    return np.asarray([LETTERS.find(letter) if letter in LETTERS else 10 for letter in text], np.int32)


def decode(tokens):
    return "".join(LETTERS[token] for token in tokens)


def asking(**changes):
    parts = {"template": TEMPLATE, "stop": (STOP,)} | changes
    return models.target()._replace(text=Text(encode, decode, **parts))


def test_questions_are_what_the_target_writes_behind_the_beginning(tmp_path):
    target = asking()
    found = own_questions(target, 24, 12, directory=tmp_path)
    assert found == own_questions(target, 24, 12, directory=tmp_path) == own_questions(target, 24, 12)
    assert list(tmp_path.iterdir())
    assert 1 < len(found) == len(set(found)) <= 24
    assert all(question and LETTERS[STOP] not in question and len(question) < 12 for question in found)
    sampling = jaxspec.Sampling(temperature=1.0, seed=list(range(24)))
    rows = jaxspec.generate(jaxspec.autoregressive(target), [[1, 2]] * 24, 12, sampling=sampling).tokens
    drawn = {decode(row[:-1]) for row in rows if row[-1] == STOP}
    assert set(found) == drawn - {""}


@pytest.mark.parametrize("changes", [{"template": None}, {"stop": ()}], ids=["no template", "no stop token"])
def test_other_models_are_refused(changes):
    with pytest.raises(ValueError, match="expected an instruct model, with a chat template and stop tokens"):
        own_questions(asking(**changes), 2)


def test_a_template_without_the_users_words_is_refused():
    with pytest.raises(ValueError, match="expected a chat template that writes the user's words"):
        own_questions(asking(template="123"), 2)
