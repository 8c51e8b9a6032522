"""Tables of n-grams: counted by hand, the same tokens as plain decoding, saved and read, refused."""

from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafts import ngram_table
from jaxspec.drafts.ngram import CommittedText
from jaxspec.drafts.table import UNSEEN, counted_next
from jaxspec.generation import continued
from jaxspec.loading import is_draft, load_draft, save_draft
from jaxspec.text.prompts import Continued
from jaxspec.verify.sampling import NOTHING
from tests.support.jaxspec import models


def texts(rows=20, length=30, words=5):
    tokens = np.random.default_rng(0).integers(0, words, (rows, length))
    tokens[3, 20:] = -1
    return Continued(tokens, np.arange(rows) % 7)


def own_table(**options):
    """Of the tiny target's own answers."""
    answers = continued(models.target(), models.PROMPTS, models.NEW_TOKENS)
    return ngram_table(answers, models.target().network.config.vocab_size, **options)


def counted_by_hand(data, sizes):
    counts = defaultdict(Counter)
    for row, start in zip(data.tokens.tolist(), data.starts, strict=True):
        for end in range(start, len(row)):
            for size in sizes:
                if row[end] >= 0 and end >= size:
                    counts[tuple(row[end - size : end])][row[end]] += 1
    return counts


def test_the_table_has_what_most_often_followed():
    data, sizes = texts(), (3, 2, 1)
    table = ngram_table(data, 5, sizes)
    by_size = defaultdict(list)
    for gram, follows in counted_by_hand(data, sizes).items():
        by_size[len(gram)].append((gram, follows))
    for size, rows in by_size.items():
        tokens, shares = counted_next(table.params, jnp.asarray([gram for gram, _ in rows]), (size,))
        for (_, follows), token, share in zip(rows, tokens.tolist(), shares.tolist(), strict=True):
            most = max(follows.values())
            assert follows[token] == most
            assert share == pytest.approx((most - 0.5) / (follows.total() + UNSEEN[size]))


def test_the_longest_counted_n_gram_decides():
    data = Continued(np.asarray([[1, 2, 3, 1, 2, 3, 4, 2, 4, 4, 2, 4]]), 0)
    table = ngram_table(data, 5, (2, 1))
    recent = jnp.asarray([[1, 2], [0, 2], [0, 0], [NOTHING, NOTHING]])
    assert counted_next(table.params, recent, (2, 1))[0].tolist()[:1] == [3]
    assert counted_next(table.params, recent, (2, 1))[0].tolist()[2:] == [NOTHING, NOTHING]
    assert counted_next(table.params, recent, (1,))[0][1] in (3, 4)


def test_a_window_that_promises_too_little_is_empty():
    data, text = texts(), CommittedText(jnp.asarray([[0, 1, 2, 3, 0, 0, 0, 0, 0, 0]]), jnp.asarray([3]))
    ready, never = (ngram_table(data, 5, least=least) for least in (0.0, 10.0))
    assert (ready.drafter.following(ready.params, text, 4) >= 0).any()
    assert (never.drafter.following(never.params, text, 4) == NOTHING).all()


def test_the_text_itself_is_looked_up_too():
    """7 8 9 was never counted; the text has said what follows."""
    table = ngram_table(texts(), 12)
    said = CommittedText(jnp.asarray([[7, 8, 9, 10, 11, 7, 8, 9, 0, 0, 0, 0]]), jnp.asarray([7]))
    assert table.drafter.following(table.params, said, 3).tolist() == [[10, 11, 7]]


METHODS = {
    "speculative": lambda table: models.speculative(4, draft=table),
    "mirror": lambda table: models.mirror(4, 2, draft=table),
    "mirror without branches": lambda table: models.mirror(4, 2, draft=table, policy=jaxspec.candidates.none()),
}


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_those_of_plain_decoding(name):
    found = jaxspec.generate(METHODS[name](own_table(least=0.0)), models.PROMPTS, models.NEW_TOKENS)
    assert found.tokens == models.expected()
    assert found.stats.accepted_length > 0.5


def test_a_saved_table_is_the_same(tmp_path):
    table = own_table(sizes=(2, 1), repeated=(2,), least=0.5)
    save_draft(table, tmp_path)
    again = load_draft(tmp_path, models.target())
    assert is_draft(tmp_path)
    assert again.drafter == table.drafter
    jax.tree.map(np.testing.assert_array_equal, again.params, table.params)


def test_a_table_of_another_vocabulary(tmp_path):
    other = ngram_table(texts(), 5)
    with pytest.raises(ValueError, match=r"expected a table over the \d+ tokens of the target, got 5; count one"):
        models.speculative(4, draft=other)
    save_draft(other, tmp_path)
    with pytest.raises(ValueError, match=r"expected a table over the \d+ tokens of the target, got 5"):
        load_draft(tmp_path, models.target())


def test_no_answer_or_no_size():
    with pytest.raises(ValueError, match="expected at least one answer of the target, got none"):
        ngram_table(Continued(np.asarray([[1, 2, 3]]), 3), 5)
    with pytest.raises(ValueError, match="expected 1 <= .*, a whole number, got 0"):
        ngram_table(texts(), 5, (0,))
