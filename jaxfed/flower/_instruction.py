"""What the server tells a client beside the arrays, and what a client tells of itself: plain values in records."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flwr.app import ConfigRecord

from jaxfed.data.batches import Epochs, Steps
from jaxfed.flower._records import RefusedError
from jaxfed.run.identity import Identity, differences

BATCHINGS: dict[str, type[Steps] | type[Epochs]] = {"steps": Steps, "epochs": Epochs}

Sample = Mapping[str, jax.ShapeDtypeStruct]
"""Shape and dtype of one sample by name."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """How a client is to play its part of a round.

    Attributes:
        run: name of the run, the same after every resumption; a client keeps its rows by it.
        counted: last round (from 0) in which the server counted this client's reply, −1 for none: the client goes on
            from its row after that round.
        since: the client may forget rows of rounds before this one; no checkpoint of the server goes back further.
        seed: of batches and the loss function's keys.
        batching: how samples become batches.
        algorithm: its name and hyperparameters, which both sides must share, as JSON.
    """

    run: str
    counted: int
    since: int
    seed: int
    batching: Steps | Epochs
    algorithm: str

    def to_record(self) -> ConfigRecord:
        """As Flower sends it."""
        kind = next(name for name, each in BATCHINGS.items() if isinstance(self.batching, each))
        plain = {name: value for name, value in vars(self).items() if name != "batching"}
        return ConfigRecord({**plain, "batching": kind, **dataclasses.asdict(self.batching)})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "Instruction":
        """What `to_record` wrote. Raises RefusedError for anything else."""
        told: dict[str, Any] = dict(record)
        try:
            kind = BATCHINGS[told.pop("batching")]
            batching: Any = kind(**{field.name: told.pop(field.name) for field in dataclasses.fields(kind)})
            made = cls(**told, batching=batching)
            if not made.run.isalnum():
                raise ValueError("the name of a run is made of letters and digits")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RefusedError(
                f"expected an instruction of jaxfed.flower, got {dict(record)} ({error!r}); "
                "give server and clients the same version of jaxfed"
            ) from error
        return made


IDENTITY = "identity"


def same_algorithm(hyperparameters: Mapping[str, Any], identity: Identity) -> str:
    """What server and clients compare: hyperparameters and what a client computes (`jaxfed.run.identity.of_client`)."""
    return json.dumps({**hyperparameters, IDENTITY: identity})


def check_same(server: str, client: str) -> None:
    """Raise RefusedError, naming what differs, unless both sides run the same algorithm.

    What functions are traced to is compared where both sides have the same versions and kind of device.
    """
    ours, theirs = json.loads(client), json.loads(server)
    traced = differences(theirs.pop(IDENTITY, {}), ours.pop(IDENTITY, {}))
    pairs = {name: (theirs.get(name), ours.get(name)) for name in {**ours, **theirs}}
    differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} | traced
    if differ:
        listed = "; ".join(f"{name}: {there} there, {here} here" for name, (there, here) in differ.items())
        raise RefusedError(f"expected the server's algorithm, got another ({listed}); deploy one app to both sides")


@dataclasses.dataclass(frozen=True)
class Member:
    """What a client says of itself: its id, its number of samples, and shape and dtype of one by name."""

    client: int
    samples: int
    sample: Sample

    def to_record(self) -> ConfigRecord:
        """As Flower sends it."""
        return ConfigRecord({"client": self.client, "samples": self.samples, "arrays": described(self.sample)})

    @classmethod
    def from_record(cls, record: ConfigRecord, num_clients: int) -> "Member":
        """What `to_record` wrote. Raises RefusedError for anything else, and for an id that the population lacks."""
        try:
            told: dict[str, Any] = dict(record)
            made = cls(int(told["client"]), int(told["samples"]), sample_of(told["arrays"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RefusedError(f"expected client, samples and arrays, got {dict(record)} ({error!r})") from error
        if not 0 <= made.client < num_clients or made.samples < 1:
            raise RefusedError(
                f"expected a client from 0 to {num_clients - 1} with samples, got client {made.client} with "
                f"{made.samples}; start its SuperNode with another partition-id, or serve more clients"
            )
        return made

    def check_like(self, other: "Member") -> None:
        """Raise RefusedError unless both hold samples of the same names, shapes and dtypes."""
        if dict(self.sample) != dict(other.sample):
            raise RefusedError(
                f"client {self.client}: expected samples {_told(other.sample)} as client {other.client} has, "
                f"got {_told(self.sample)}; prepare the data of all clients alike"
            )


def described(sample: Sample) -> str:
    """Shapes and dtypes as JSON."""
    return json.dumps({name: [str(each.dtype), list(each.shape)] for name, each in sample.items()})


def sample_of(arrays: str) -> Sample:
    """What `described` wrote."""
    pairs = json.loads(arrays).items()
    return {name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype)) for name, (dtype, shape) in pairs}


def _told(sample: Sample) -> str:
    return ", ".join(f"{name} {each.dtype}{list(each.shape)}" for name, each in sample.items())
