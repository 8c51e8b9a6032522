"""Records of the original programs of EAGLE, Medusa and Hydra: arrays and weights of a folder, by the form of names.

``$JAXSPEC_DRAFT_RECORDS`` is the folder (default: ``tests/data/drafts``, whose README says what each file is). Sizes,
settings and prefixes come from the files, so that others of the same form are replayed too.
"""

import os
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.generation.requests import bucket
from jaxspec.loading import load_draft
from jaxspec.verify import Features
from jaxspec.verify.features import Reader
from jaxspec.verify.target import Request, prefill

FOLDER = Path(os.environ.get("JAXSPEC_DRAFT_RECORDS", Path(__file__).parents[2] / "data" / "drafts"))


def names(pattern, part=""):
    """Names of the record files of a pattern that have arrays with ``part`` in their names.

    The pattern itself if there are none, for a test that then skips.
    """
    files = sorted(FOLDER.glob(f"{pattern}.npz"))
    return [path.stem for path in files if any(part in key for key in np.load(path))] or [pattern]


def folders(pattern):
    return sorted(path.name for path in FOLDER.glob(pattern) if path.is_dir()) or [pattern]


@cache
def record(name):
    """Arrays of one record file."""
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{FOLDER} holds no {name}.npz")
    with np.load(path) as file:
        return dict(file)


@cache
def target(name="target"):
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{FOLDER} holds no {name}")
    return jaxspec.load_huggingface(FOLDER / name)


@cache
def draft(name):
    """The draft of a weight folder, or of a record file whose weights are in a folder of the same name."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{FOLDER} holds no {name}")
    if not list((FOLDER / name).glob("*.safetensors")):
        pytest.importorskip("torch", reason=f"{name} is a pickle, which needs torch")
    return load_draft(FOLDER / name, target(), report=lambda line: None)


def texts(found):
    """Names of the recorded texts: those with tokens."""
    return sorted(key.removesuffix(".tokens") for key in found if key.count(".") == 1 and key.endswith(".tokens"))


@cache
def features(reads, tokens, padded=False):
    """The target's features at all tokens of a text, and at the padding."""
    request = request_of(tokens, padded)
    return prefill(target().network, target().params, request, request.tokens.shape[1] + 1, Reader(reads))[1]


def request_of(tokens, padded=False):
    """A request of one text; padded to a bucket, so that texts of many lengths share their programs."""
    row = np.pad(tokens, (0, bucket(len(tokens)) - len(tokens) if padded else 0))
    return Request(jnp.asarray([row], jnp.int32), jnp.asarray([len(tokens)]), jnp.asarray([8]))


def of_concatenated(reads, rows):
    """Features of recorded taps [T, taps·D]."""
    return Features(tuple(jnp.asarray(part)[None] for part in np.split(rows, len(reads.taps), axis=1)))


def own_vocabulary(made, logits):
    """Logits [V, B, T] restricted to the draft's vocabulary: [T, V_d]."""
    index = made.params.get("index") if isinstance(made.params, dict) else None
    rows = logits if index is None else logits[np.argsort(np.asarray(index), kind="stable")[: logits_size(made)]]
    return np.asarray(rows)[:, 0].T


def logits_size(made):
    return made.params["head"].shape[0]


def close(found, recorded, tolerance=1e-4):
    """Equal to 1e-4 of the recorded size."""
    np.testing.assert_allclose(
        np.asarray(found), recorded, atol=tolerance * max(1.0, float(np.abs(recorded).max())), rtol=0
    )


def run(made, inputs, tokens, first=0, cache=None, attend=None, depth=0):
    """One pass of a draft's network over pairs in consecutive rows: x, logits, cache."""
    network = made.drafter.network
    rows = first + jnp.arange(len(tokens))[None]
    count = 0 if network.config is None else network.config.num_layers
    cache = (None,) * count if cache is None else cache
    x, cache = network.run(made.params, inputs, jnp.asarray([tokens], jnp.int32), rows, cache, attend, depth)
    return x, network.logits(made.params, x, depth), cache
