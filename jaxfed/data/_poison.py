"""Poisoned data: clients that train on wrong labels, to test aggregates with."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxfed.core.checks import check_range
from jaxfed.data.batches import ClientData
from jaxfed.data.streams import check_resident


def flip_labels(data: ClientData, clients: Sequence[int], num_classes: int, name: str = "y") -> ClientData:
    """Return the same data, where some clients have the label C − 1 − y instead of y on all their samples.

    Their samples are copied, since other clients may share them.

    Args:
        data: N clients.
        clients: ids of the attackers.
        num_classes: C.
        name: of the array of labels, integers [n].

    Raises:
        ValueError: an id outside 0 to N − 1, no such array, or labels that are no integers from 0 to C − 1.
    """
    check_range("num_classes", num_classes, least=2, whole=True)
    check_resident(data, "flip_labels")
    ids = np.unique(np.asarray(clients, np.int64))
    if not ids.size or ids[0] < 0 or ids[-1] >= len(data.lengths):
        raise ValueError(f"clients: expected ids from 0 to {len(data.lengths) - 1}, got {clients!r}")
    if name not in data.arrays:
        raise ValueError(f"expected an array of labels called {name!r}, got {sorted(data.arrays)}")
    labels = np.asarray(data.arrays[name])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"array {name!r}: expected integers [n], got {labels.dtype}{list(labels.shape)}")
    offsets, lengths = np.asarray(data.offsets), np.asarray(data.lengths)
    order = np.arange(len(labels)) if data.order is None else np.asarray(data.order)
    places = np.concatenate([np.arange(offsets[each], offsets[each] + lengths[each]) for each in ids])
    samples = order[places]
    if (wrong := labels[samples][(labels[samples] < 0) | (labels[samples] >= num_classes)]).size:
        raise ValueError(f"array {name!r}: expected labels from 0 to {num_classes - 1}, got {wrong[0]}")
    order = order.copy()
    order[places] = len(labels) + np.arange(len(places))
    arrays = {key: jnp.concatenate([array, array[samples]]) for key, array in data.arrays.items()}
    flipped = jnp.asarray(num_classes - 1 - labels[samples], arrays[name].dtype)
    arrays[name] = arrays[name].at[len(labels) :].set(flipped)
    return ClientData(arrays, data.offsets, data.lengths, jnp.asarray(order, jnp.int32))
