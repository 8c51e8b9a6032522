"""The client side: a ClientApp that does a simulated client's round on its own data and row."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from jaxtyping import PyTree

from jaxfed.core import keys
from jaxfed.core.protocol import ClientRow, FederatedAlgorithm, Server
from jaxfed.core.types import Params
from jaxfed.data.batches import client_data
from jaxfed.data.tables import from_dataset
from jaxfed.flower._instruction import Instruction, Member, Sample, check_same, described, same_algorithm
from jaxfed.flower._records import pack, unpack
from jaxfed.flower._rows import Rows
from jaxfed.flower._training import ClientRound, client_round, server_like
from jaxfed.layout.plans import vmap
from jaxfed.rows.rounds import RoundConfig
from jaxfed.run.identity import batch_size_of, of_client

PARTITION = "partition-id"

Algorithm = FederatedAlgorithm | Callable[[Context], FederatedAlgorithm]
"""An algorithm, or a function that makes it of Flower's context, such as of `context.run_config`."""

Directory = str | Path | Callable[[Context], str | Path]


def client_app(
    algorithm: Algorithm,
    params: Params,
    data_for: Callable[[Context], Any],
    directory: Directory,
    *,
    model_state: PyTree = (),
    compilation_cache: str | Path | None = None,
    mods: Sequence[Any] = (),
) -> ClientApp:
    """Return a ClientApp of one client: the local update of `jaxfed.simulate`, with the same keys and batches.

    Noise of `jaxfed.privacy.local_noise` uses entropy of the client's own: it cannot be reproduced, and differs from
    that of a simulation.

    The configuration of a SuperNode names its client, from 0: `flower-supernode --node-config "partition-id=3"`. The
    client's row is saved in `<directory>/<run>/<client>`, one checkpoint for every round that the server may resume
    from. An exception of the client is sent to the server, which logs it and counts the client as missing.

    Args:
        algorithm: from a factory such as `jaxfed.fedspeed`, as the server runs it; or `algorithm(context)`.
        params: arrays, or `jax.ShapeDtypeStruct`, of the parameters' shapes and dtypes; their values are the server's.
        data_for: `data_for(context)` -> this client's named arrays [n, ...], or what else `jaxfed.data.from_dataset`
            reads.
        directory: of the rows, on the client's disk; or `directory(context)`.
        model_state: like `params`, for a loss function that is `Stateful`.
        compilation_cache: directory of compiled programs, which the process of the next round reuses.
        mods: Flower's own modifiers of messages.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, model_state))
    client = _Client(algorithm, like, data_for, directory)
    app = ClientApp(mods=list(mods))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"member": client.member(context).to_record()}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if compilation_cache is not None:
            keep_programs(compilation_cache)
        return Message(client.train(message.content, context), reply_to=message)

    return app


def keep_programs(directory: str | Path) -> None:
    """Let jax keep every compiled program in a directory."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclasses.dataclass(frozen=True)
class _Client:
    """The arguments of `client_app`, and what is built from them once per process."""

    algorithm: Algorithm
    like: tuple[Params, PyTree]
    data_for: Callable[[Context], Any]
    directory: Directory
    made: "dict[int, _Built]" = dataclasses.field(default_factory=dict)

    def member(self, context: Context) -> Member:
        """Return the id of this client and the shape of its samples."""
        client, arrays = _id(context), from_dataset(self.data_for(context))
        sample = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in arrays.items()}
        return Member(client, len(next(iter(arrays.values()))), sample)

    def train(self, content: RecordDict, context: Context) -> RecordDict:
        """Do one round: restore the row that the server last counted, train, save the new row."""
        made, client = self._of(context), _id(context)
        instruction = Instruction.from_record(content.config_records["instruction"])
        data = client_data([self.data_for(context)])
        sample = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), dict(data.arrays))
        check_same(instruction.algorithm, made.identity(sample, instruction.batching))
        server = unpack(content.array_records["server"], made.server, what="the server's broadcast")
        first = unpack(content.array_records["row"], made.row, what="a new client's row", zeros=False)
        work = made.work(instruction.batching, instruction.seed, int(data.lengths[0]))
        with Rows(self._folder(context) / instruction.run / f"client-{client:06d}", first) as rows:
            update = work(server, rows.after(instruction.counted), data, jnp.int32(client), keys.entropy_key())
            rows.keep(int(server.round), update.row, instruction.since)
        return RecordDict({"message": pack(update.message, deflate=True), "info": pack(update.info)})

    def _of(self, context: Context) -> "_Built":
        if context.run_id not in self.made:
            algorithm = self.algorithm(context) if callable(self.algorithm) else self.algorithm
            self.made[context.run_id] = _Built(algorithm, *self.like)
        return self.made[context.run_id]

    def _folder(self, context: Context) -> Path:
        return Path(self.directory(context) if callable(self.directory) else self.directory)


class _Built:
    """An algorithm, the shapes of its server and rows, and its compiled rounds."""

    def __init__(self, algorithm: FederatedAlgorithm, params: Params, model_state: PyTree) -> None:
        self.algorithm = algorithm
        self.server: Server = server_like(algorithm, params, model_state)
        self.row: ClientRow = jax.eval_shape(algorithm.init_client, params, model_state)
        self.work = functools.cache(self._work)
        self._identities: dict[Any, str] = {}

    def identity(self, sample: Sample, batching: Any) -> str:
        """Return what the server compares with its own, for samples of these shapes."""
        key = batching, described(sample)
        if key not in self._identities:
            traced = of_client(self.algorithm, self.server, sample, batch_size_of(batching))
            self._identities[key] = same_algorithm(self.algorithm.hyperparameters, traced)
        return self._identities[key]

    def _work(self, batching: Any, seed: int, samples: int) -> ClientRound:
        return client_round(RoundConfig(self.algorithm, batching, vmap(), samples, seed))


def _id(context: Context) -> int:
    client = context.node_config.get(PARTITION)
    if isinstance(client, bool) or not isinstance(client, int) or client < 0:
        raise ValueError(
            f'expected "{PARTITION}", an integer ≥ 0, in the node\'s configuration, got {dict(context.node_config)}; '
            f'start its SuperNode with --node-config "{PARTITION}=0"'
        )
    return client
