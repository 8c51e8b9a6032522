"""Properties of partitioners, batching and masks, on examples from hypothesis."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import jaxfed
from jaxfed.data import Epochs, Steps, dirichlet, draw_indices, iid, natural, pathological, quantity_skew

labels = arrays.arrays(np.int64, st.integers(1, 60), elements=st.integers(-3, 4))
clients = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)
concentrations = st.floats(0.01, 100.0)


def assert_shared_out(parts, size, num_clients, least=1):
    """Every sample to one client, every client has enough, in rising order."""
    assert len(parts) == num_clients
    assert min(map(len, parts)) >= least
    assert np.sort(np.concatenate(parts)).tolist() == list(range(size))
    assert all((np.diff(part) > 0).all() for part in parts)


@given(labels, clients, seeds)
def test_iid(labels, num_clients, seed):
    if num_clients > len(labels):
        with pytest.raises(ValueError, match="take fewer clients"):
            iid(labels, num_clients, seed)
        return
    parts = iid(labels, num_clients, seed)
    assert_shared_out(parts, len(labels), num_clients)
    assert np.ptp([len(part) for part in parts]) <= 1


@pytest.mark.parametrize("rule", [dirichlet, quantity_skew])
@given(labels=labels, num_clients=clients, concentration=concentrations, seed=seeds, least=st.integers(1, 5))
def test_dirichlet_and_quantity_skew(rule, labels, num_clients, concentration, seed, least):
    share = partial(rule, labels, num_clients, concentration, seed, min_samples=least)
    if num_clients * least > len(labels):
        with pytest.raises(ValueError, match="take fewer clients"):
            share()
        return
    assert_shared_out(share(), len(labels), num_clients, least)


@given(labels, clients, st.integers(1, 8), seeds)
def test_pathological(labels, num_clients, classes_per_client, seed):
    """Exactly so many classes each; refused only where that cannot be."""
    sizes = np.unique(labels, return_counts=True)[1]
    wanted, most = num_clients * classes_per_client, np.minimum(sizes, num_clients).sum()
    can_be = num_clients <= len(labels) and classes_per_client <= len(sizes) <= wanted <= most
    if not can_be:
        with pytest.raises(ValueError, match=r"take fewer clients|classes_per_client must be|change either number"):
            pathological(labels, num_clients, classes_per_client, seed)
        return
    parts = pathological(labels, num_clients, classes_per_client, seed)
    assert_shared_out(parts, len(labels), num_clients)
    assert {len(np.unique(labels[part])) for part in parts} == {classes_per_client}


@given(labels)
def test_natural(labels):
    names, parts = natural(labels)
    assert_shared_out(parts, len(labels), len(set(labels.tolist())))
    assert [set(labels[part].tolist()) for part in parts] == [{name} for name in names.tolist()]


#: One program for each kind of batching: lengths, order, cohort and key are traced.
LONGEST, POSITIONS, COHORT = 9, 30, 4
BATCHINGS = {"epochs": Epochs(2, 4), "steps": Steps(5, 4)}
draw = jax.jit(draw_indices, static_argnames=("batching", "longest"))


@st.composite
def populations(draw):
    """(lengths of three clients, order of their samples, cohort with empty slots)."""
    lengths = draw(st.lists(st.integers(1, LONGEST), min_size=3, max_size=3))
    order = draw(st.permutations(range(POSITIONS)))
    ids = draw(st.lists(st.integers(-1, 2), min_size=COHORT, max_size=COHORT))
    return np.asarray(lengths), np.asarray(order), np.asarray(ids)


def drawn(population, seed, batching):
    """(samples of the client, index, mask) of every slot; an empty one has no samples."""
    lengths, order, ids = population
    offsets = np.cumsum(lengths) - lengths
    arrays = {"x": jnp.zeros(POSITIONS)}
    data = jaxfed.data.ClientData(arrays, *(jnp.asarray(each, jnp.int32) for each in (offsets, lengths, order)))
    index, mask = draw(data, jnp.asarray(ids, jnp.int32), jax.random.key(seed), batching=batching, longest=LONGEST)
    own = [order[offsets[i] : offsets[i] + lengths[i]].tolist() if i >= 0 else [] for i in ids]
    return zip(own, np.asarray(index), np.asarray(mask), strict=True)


@given(populations(), st.integers(0, 2**31 - 1))
def test_every_epoch_visits_each_sample_once(population, seed):
    for own, index, mask in drawn(population, seed, BATCHINGS["epochs"]):
        steps = -(-len(own) // 4)
        for epoch in range(2):
            part = slice(epoch * steps, (epoch + 1) * steps)
            assert sorted(index[part][mask[part]].tolist()) == sorted(own)
        assert not mask[2 * steps :].any()
        assert (np.diff(mask.astype(int), axis=1) <= 0).all(), "samples come before padding"


@given(populations(), st.integers(0, 2**31 - 1))
def test_steps_visit_all_samples_equally_often(population, seed):
    for own, index, mask in drawn(population, seed, BATCHINGS["steps"]):
        counts = [int((index[mask] == sample).sum()) for sample in own]
        assert sum(counts) == mask.sum() == 5 * min(4, len(own))
        assert not counts or max(counts) - min(counts) <= 1
        assert all(len(set(each[kept].tolist())) == kept.sum() for each, kept in zip(index, mask, strict=True))


masked_mean = jax.jit(jaxfed.masked_mean)


@given(
    arrays.arrays(np.float32, 7, elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.bool_, 7),
    st.sampled_from([np.nan, np.inf, 1e30]),
)
def test_what_a_mask_hides_is_not_seen(values, mask, hidden):
    mean = masked_mean(jnp.asarray(np.where(mask, values, np.float32(hidden))), jnp.asarray(mask))
    expected = values[mask].mean(dtype=np.float64) if mask.any() else 0.0
    np.testing.assert_allclose(mean, expected, atol=1e-4)
