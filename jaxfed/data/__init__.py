"""Federated data: readers, partitioners, natural clients, and the flat arrays that rounds draw their batches from."""

from jaxfed.data._augment import augmented, flip, in_turn, pad_crop
from jaxfed.data._cifar import cifar
from jaxfed.data._datasets import channel_statistics, mnist, normalised, read_idx, read_npz, splits_of_npz
from jaxfed.data._hdf5 import read_hdf5
from jaxfed.data._leaf import read_leaf
from jaxfed.data._multihost import shared_client_data
from jaxfed.data._partition import dirichlet, iid, natural, pathological, quantity_skew
from jaxfed.data._poison import flip_labels
from jaxfed.data._skew import Skew, label_counts, load_parts, save_parts, skew_of
from jaxfed.data._synthetic import synthetic
from jaxfed.data.batches import (
    ClientData,
    client_data,
    draw_batches,
    draw_indices,
    partitioned,
    train_test,
)
from jaxfed.data.batching import Epochs, OwnSteps, Steps, Stragglers
from jaxfed.data.roles import read_roles
from jaxfed.data.streams import HostSamples, streamed
from jaxfed.data.tables import from_dataset

__all__ = [
    "ClientData",
    "Epochs",
    "HostSamples",
    "OwnSteps",
    "Skew",
    "Steps",
    "Stragglers",
    "augmented",
    "channel_statistics",
    "cifar",
    "client_data",
    "dirichlet",
    "draw_batches",
    "draw_indices",
    "flip",
    "flip_labels",
    "from_dataset",
    "iid",
    "in_turn",
    "label_counts",
    "load_parts",
    "mnist",
    "natural",
    "normalised",
    "pad_crop",
    "partitioned",
    "pathological",
    "quantity_skew",
    "read_hdf5",
    "read_idx",
    "read_leaf",
    "read_npz",
    "read_roles",
    "save_parts",
    "shared_client_data",
    "skew_of",
    "splits_of_npz",
    "streamed",
    "synthetic",
    "train_test",
]
