"""The client's side: a ClientApp that does a simulated client's round on data and rows of its own."""

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
    """A ClientApp of one client: the local update that `jaxfed.simulate` vmaps, from the same keys and batches.

    Noise of `jaxfed.privacy.local_noise` is made of entropy of the client's own: nobody can make it again, so that it
    differs from the noise of a simulation.

    A SuperNode says which client it is, from 0: `flower-supernode --node-config "partition-id=3"`. The client's row
    lies at `<directory>/<run>/<client>`, one checkpoint for every round that the server may come back to. An error of
    the client goes back to the server, which logs it and counts the client as missing in that round.

    Args:
        algorithm: from a factory such as `jaxfed.fedspeed`, as the server runs it; or `algorithm(context)`.
        params: arrays, or `jax.ShapeDtypeStruct`, that say what the parameters look like; their values are the
            server's.
        data_for: `data_for(context)` -> this client's named arrays [n, ...], or what else `jaxfed.data.from_dataset`
            reads.
        directory: where rows lie on the client's own disk; or `directory(context)`.
        model_state: like `params`, for a loss function that is `Stateful`.
        compilation_cache: directory of compiled programs: the process of the next round finds its own there.
        mods: Flower's own modifiers of messages.
    """
    client = _Client(algorithm, params, data_for, directory, model_state)
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
    """Let jax keep every program that it compiles in a directory, and look there first."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class _Client:
    """What `client_app` was given, and what is made of it once in a process."""

    def __init__(
        self,
        algorithm: Algorithm,
        params: Params,
        data_for: Callable[[Context], Any],
        directory: Directory,
        model_state: PyTree,
    ) -> None:
        self._algorithm, self._data_for, self._directory = algorithm, data_for, directory
        self._like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, model_state))
        self._made: dict[int, _Made] = {}

    def member(self, context: Context) -> Member:
        """Who this client is and what samples it holds."""
        client, arrays = _id(context), from_dataset(self._data_for(context))
        sample = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in arrays.items()}
        return Member(client, len(next(iter(arrays.values()))), sample)

    def train(self, content: RecordDict, context: Context) -> RecordDict:
        """One round: the row as it was when the server last counted this client, local work, the new row on disk."""
        made, client = self._of(context), _id(context)
        told = Instruction.from_record(content.config_records["instruction"])
        data = client_data([self._data_for(context)])
        sample = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), dict(data.arrays))
        check_same(told.algorithm, made.identity(sample, told.batching))
        server = unpack(content.array_records["server"], made.server, what="the server's broadcast")
        first = unpack(content.array_records["row"], made.row, what="a new client's row", zeros=False)
        work = made.work(told.batching, told.seed, int(data.lengths[0]))
        with Rows(self._place(context) / told.run / f"client-{client:06d}", first) as rows:
            update = work(server, rows.after(told.counted), data, jnp.int32(client), keys.entropy_key())
            rows.keep(int(server.round), update.row, told.since)
        return RecordDict({"message": pack(update.message, deflate=True), "info": pack(update.info)})

    def _of(self, context: Context) -> "_Made":
        if context.run_id not in self._made:
            given = self._algorithm
            self._made[context.run_id] = _Made(given(context) if callable(given) else given, *self._like)
        return self._made[context.run_id]

    def _place(self, context: Context) -> Path:
        return Path(self._directory(context) if callable(self._directory) else self._directory)


class _Made:
    """An algorithm, what its server and rows look like, and its compiled rounds."""

    def __init__(self, algorithm: FederatedAlgorithm, params: Params, model_state: PyTree) -> None:
        self.algorithm = algorithm
        self.server: Server = server_like(algorithm, params, model_state)
        self.row: ClientRow = jax.eval_shape(algorithm.init_client, params, model_state)
        self.work = functools.cache(self._work)
        self._identities: dict[Any, str] = {}

    def identity(self, sample: Sample, batching: Any) -> str:
        """What the server compares with its own, for samples like these."""
        key = batching, described(sample)
        if key not in self._identities:
            found = of_client(self.algorithm, self.server, sample, batch_size_of(batching))
            self._identities[key] = same_algorithm(self.algorithm.hyperparameters, found)
        return self._identities[key]

    def _work(self, batching: Any, seed: int, samples: int) -> ClientRound:
        return client_round(RoundConfig(self.algorithm, batching, vmap(), samples, seed))


def _id(context: Context) -> int:
    given = context.node_config.get(PARTITION)
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ValueError(
            f'expected "{PARTITION}", an integer ≥ 0, in the node\'s configuration, got {dict(context.node_config)}; '
            f'start its SuperNode with --node-config "{PARTITION}=0"'
        )
    return given
