"""Filters, cache and stop strings against plain oracles, on whatever hypothesis thinks of."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxspec.models import attention as cache
from jaxspec.text.stopping import BROKEN, Written
from jaxspec.verify.sampling import filtered
from tests.jaxspec.verify.test_sampling import asked, softmax, sorted_filter

VOCAB, BATCH = 7, 2
filter_all = jax.jit(filtered)

#: Quarters, so that many are equal, and what lies between.
numbers = st.integers(-32, 32).map(lambda n: n / 4) | st.integers(-9000, 9000).map(lambda n: n / 1000)
logits = arrays.arrays(np.float32, (VOCAB, BATCH, 1), elements=numbers.map(np.float32))
options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "top_k": st.integers(0, VOCAB + 2),
        "top_p": st.just(1.0) | st.floats(1 / 64, 1.0, width=32),
        "min_p": st.just(0.0) | st.floats(1 / 64, 1.0, width=32),
    }
)


def on_the_border(row, temperature, top_k, top_p, min_p):
    """Whether rounding may decide what is kept."""
    law = np.sort(softmax(sorted_filter(row, temperature, top_k)))[::-1]
    return np.any(np.abs(np.cumsum(law) - top_p) < 1e-5) or np.any(np.abs(law / law[0] - min_p) < 1e-5)


@given(logits, st.lists(options, min_size=BATCH, max_size=BATCH))
def test_filters_keep_what_sorting_keeps_and_the_rest_is_a_law(logits, rows):
    for column, row in zip(logits[..., 0].T, rows, strict=True):
        assume(row["top_p"] == 1.0 and row["min_p"] == 0.0 or not on_the_border(column, **row))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    found = np.asarray(filter_all(jnp.asarray(logits), asked(BATCH, **columns)))[..., 0]
    for column, kept, row in zip(logits[..., 0].T, found.T, rows, strict=True):
        np.testing.assert_allclose(kept, sorted_filter(column, **row), rtol=1e-6)
        law, whole = softmax(kept), softmax(column / np.float32(row["temperature"]))
        assert abs(law.sum() - 1) < 1e-6
        np.testing.assert_allclose(law, np.where(law > 0, whole, 0) / whole[law > 0].sum(), rtol=1e-4)


CAPACITY, NEW = 12, 3
write = jax.jit(cache.write)
visible = jax.jit(cache.visible, static_argnums=(0, 2))


@given(st.lists(st.lists(st.integers(0, NEW), min_size=BATCH, max_size=BATCH), max_size=8))
def test_a_cache_holds_what_was_accepted_after_any_rollbacks(accepted):
    """Windows of three are written where each sequence stands, and so many of each are kept."""
    rows, texts = jnp.zeros((BATCH, 1, CAPACITY, 1)), [[] for _ in range(BATCH)]
    for step, counts in enumerate(accepted):
        lengths = np.asarray([len(text) for text in texts])
        if lengths.max() + NEW > CAPACITY:
            break
        new = 1 + np.arange(BATCH * NEW).reshape(BATCH, 1, NEW, 1) + 100 * step
        rows = write(rows, jnp.asarray(new, jnp.float32), jnp.asarray(lengths, jnp.int32))
        for text, window, count in zip(texts, new[:, 0, :, 0].tolist(), counts, strict=True):
            text += window[:count]
    for text, row in zip(texts, np.asarray(rows)[:, 0, :, 0], strict=True):
        assert row[: len(text)].tolist() == text


@given(
    arrays.arrays(np.int32, (BATCH, NEW), elements=st.integers(0, CAPACITY - 1)),
    st.sampled_from([None, 1, 4, CAPACITY]),
)
def test_what_is_visible_is_what_lies_before_and_within_the_window(positions, window):
    found = np.asarray(visible(CAPACITY, jnp.asarray(positions), window))
    for (b, t, s), seen in np.ndenumerate(found):
        assert seen == (s <= positions[b, t] and (window is None or positions[b, t] - s < window))


texts = st.text(alphabet="abé漢😀", max_size=24)
stops = st.lists(st.text(alphabet="abé漢😀", min_size=1, max_size=4), max_size=3)


@st.composite
def pieces(draw):
    """A text as bytes, cut anywhere, within characters too."""
    data = draw(texts).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(len(data) - 1, 1)))))
    return [part for part in (data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)) if part]


def naive(pieces, stops):
    """(text, tokens, whether it was stopped): all text so far, searched anew wherever a piece ends with a character."""
    for count in range(1, len(pieces) + 1):
        text = b"".join(pieces[:count]).decode(errors="replace")
        found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
        if found and not text.endswith(BROKEN):
            return text[: min(found)], count, True
    return b"".join(pieces).decode(), len(pieces), False


@given(pieces(), stops, st.integers(1, 4))
def test_stop_strings_are_found_wherever_tokens_end(pieces, stops, size):
    """Tokens come one or several at a time; what is shown on the way is never taken back."""
    assume(pieces)
    decode = lambda ids: b"".join(pieces[index] for index in ids).decode(errors="replace")  # noqa: E731
    row, start = Written(len(pieces), stop_strings=tuple(stops), decode=decode), 0
    text, count, stopped = naive(pieces, stops)
    while row.finish is None:
        part = range(len(pieces))[start : start + size]
        row.add(part, [0.0] * len(part))
        assert text.startswith(row.show())
        start += size
    assert (row.text, len(row.tokens), row.finish) == (text, count, "stop" if stopped else "length")
