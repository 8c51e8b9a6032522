"""Values in messages other than the arrays: the server's instruction, and the client's description of itself."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flwr.app import ConfigRecord

from jaxfed.data.batching import Epochs, Steps
from jaxfed.flower._records import RefusedError
from jaxfed.run.identity import Identity, differences

BATCHINGS: dict[str, type[Steps] | type[Epochs]] = {"steps": Steps, "epochs": Epochs}

Sample = Mapping[str, jax.ShapeDtypeStruct]
"""Shape and dtype of one sample by name."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What a client needs for its part of a round, except arrays.

    Attributes:
        run: name of the run, the same after every resumption; a client keeps its rows by it.
        counted: last round (from 0) in which the server counted this client's reply, −1 for none: the client
            continues from its row after that round.
        since: the client may delete rows of rounds before this one: no checkpoint of the server is older.
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
        """Return the record that Flower sends."""
        kind = next(name for name, each in BATCHINGS.items() if isinstance(self.batching, each))
        plain = {name: value for name, value in vars(self).items() if name != "batching"}
        return ConfigRecord({**plain, "batching": kind, **dataclasses.asdict(self.batching)})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "Instruction":
        """Return what `to_record` wrote. Raises RefusedError for anything else."""
        fields: dict[str, Any] = dict(record)
        try:
            kind = BATCHINGS[fields.pop("batching")]
            batching: Any = kind(**{field.name: fields.pop(field.name) for field in dataclasses.fields(kind)})
            made = cls(**fields, batching=batching)
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
    """Return what server and clients compare, as JSON: hyperparameters and `jaxfed.run.identity.of_client`."""
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
    """A client's description of itself: id, number of samples, and shape and dtype of one sample by name."""

    client: int
    samples: int
    sample: Sample

    def to_record(self) -> ConfigRecord:
        """Return the record that Flower sends."""
        return ConfigRecord({"client": self.client, "samples": self.samples, "arrays": described(self.sample)})

    @classmethod
    def from_record(cls, record: ConfigRecord, num_clients: int) -> "Member":
        """Return what `to_record` wrote; raise RefusedError for anything else, and for an unknown client id."""
        try:
            fields: dict[str, Any] = dict(record)
            made = cls(int(fields["client"]), int(fields["samples"]), sample_of(fields["arrays"]))
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
                f"client {self.client}: expected samples {_listed(other.sample)} as client {other.client} has, "
                f"got {_listed(self.sample)}; prepare the data of all clients alike"
            )


def described(sample: Sample) -> str:
    """Return shapes and dtypes as JSON."""
    return json.dumps({name: [str(each.dtype), list(each.shape)] for name, each in sample.items()})


def sample_of(arrays: str) -> Sample:
    """Return what `described` wrote."""
    pairs = json.loads(arrays).items()
    return {name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype)) for name, (dtype, shape) in pairs}


def _listed(sample: Sample) -> str:
    return ", ".join(f"{name} {each.dtype}{list(each.shape)}" for name, each in sample.items())
