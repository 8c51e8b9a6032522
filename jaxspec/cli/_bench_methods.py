"""Measuring decoding methods against each other: each with its own best settings, on the same cores.

XLA flags differ between settings, so each combination of flags has a worker process with its own compiled methods. The
parent sends commands, so that methods are measured in turns (A B A B) while nothing else runs.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxspec.analysis import cost
from jaxspec.devices.sharding import Placement, mesh_of
from jaxspec.drafts import Draft
from jaxspec.drafts.streams import limited
from jaxspec.generation import Generation, generate
from jaxspec.generation.trace import Span, Timeline
from jaxspec.methods import DecodeSpec
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
from jaxspec.verify.exits import LogitLens
from jaxspec.zoo import Pair, grow


@dataclass(frozen=True)
class BenchSetting:
    """A decoding method, its draft, and its share of the machine.

    Attributes:
        spec: the method; its exit is the pair's own.
        devices: devices of the target's mesh, for plain and speculative decoding.
        eigen_threads: whether one operation may use several threads.
        streams: lookahead streams of the draft.
        draft: name of one of ``pair.drafts``; default: the pair's own draft.
        growth: factors of width and depth, of the target and then of the draft (``zoo.grow``).
    """

    spec: DecodeSpec = DecodeSpec()
    devices: int = 1
    eigen_threads: bool = True
    streams: int = 0
    draft: str = ""
    growth: tuple[int, int, int, int] = (1, 1, 1, 1)

    def __str__(self) -> str:
        window, policy = self.spec.window, self.spec.policy
        sides = {"ahead": policy.ahead, "of the exit": policy.exit} if policy else {}
        budgets = {side: getattr(ranking, "budget", None) for side, ranking in sides.items()}
        parts = [f"window {window}"] * (window > 0)
        parts += [f"{budget} branches {side}" for side, budget in budgets.items() if budget]
        parts += [f"{self.streams} streams"] * (self.streams > 0)
        devices = "2 meshes" if policy else f"{self.devices} device{'s' * (self.devices > 1)}"
        return ", ".join([*parts, devices, f"threads {'on' if self.eigen_threads else 'off'}"])


#: Token ids of prompts.
Prompts = Sequence[Sequence[int]]
#: A function of this module: from a method, prompts or batches of them, and new tokens to what can be pickled.
Command = Callable[[DecodingMethod, Any, int], Any]


class Measurement(NamedTuple):
    """One run over some prompts: tokens, seconds, mean statistics; seconds of a step, and of all, without prompts."""

    tokens: list[list[int]]
    seconds: float
    accepted_length: float
    reuse_rate: float
    step_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens over seconds, prefill included."""
        return sum(map(len, self.tokens)) / self.seconds


def build(setting: BenchSetting, pair: Pair) -> DecodingMethod:
    """Build the method of a setting, for a pair that is already grown."""
    draft: Model | Draft = limited(pair.streaming or pair.draft, setting.streams) if setting.streams else pair.draft
    draft = pair.drafts[setting.draft] if setting.draft else draft
    devices = jax.devices()
    two_meshes = Placement(mesh_of(devices[:1]), mesh_of(devices[1:2]))
    one_mesh = Placement(mesh_of(devices[: setting.devices]), mesh_of(devices[: setting.devices]))
    spec = replace(setting.spec, exit_layer=pair.exit_layer)
    return spec.build(pair.target, draft, pair.exit, two_meshes if spec.policy else one_mesh)


def grown(pair: Pair, growth: tuple[int, int, int, int]) -> Pair:
    """Enlarge the models of a pair without changing their function; the exit stays at its fraction of the depth.

    Raises:
        ValueError: an exit head with parameters of its own, which would have to be grown too.
    """
    width, depth, draft_width, draft_depth = growth
    if max(width, depth) > 1 and not isinstance(pair.exit, LogitLens):
        raise ValueError("expected a pair with the logit lens to grow, got a fitted exit head")
    draft = pair._replace(
        draft=grow(pair.draft, draft_width, draft_depth),
        streaming=pair.streaming and grow(pair.streaming, draft_width, draft_depth),
    )
    return draft._replace(target=grow(pair.target, width, depth), exit_layer=pair.exit_layer * depth)


def measure(method: DecodingMethod, prompts: Prompts, new: int) -> Measurement:
    """Decode ``new`` tokens after each prompt, one by one."""
    return _measured([generate(method, [prompt], new) for prompt in prompts])


def measure_batches(method: DecodingMethod, prompts: Sequence[Prompts], new: int) -> Measurement:
    """Decode ``new`` tokens after the prompts of each batch at once."""
    return _measured([generate(method, batch, new) for batch in prompts])


def _measured(results: Sequence[Generation]) -> Measurement:
    stats, rows = [result.stats for result in results], len(results[0].tokens)
    steps, decoding = sum(s.steps for s in stats), sum(s.decode_seconds for s in stats)
    return Measurement(
        [tokens for result in results for tokens in result.tokens],
        sum(s.prefill_seconds for s in stats) + decoding,
        sum(s.verified for s in stats) / steps,
        sum(s.reused for s in stats) / max(sum(s.needed for s in stats), 1),
        decoding * rows / steps,
        decoding,
    )


def timeline(method: DecodingMethod, prompts: Prompts, new: int) -> list[Span]:
    """Decode the first prompt under a timeline."""
    with Timeline() as watch:
        generate(method, prompts[:1], new, watch=watch)
        return watch.spans()


def warm(method: DecodingMethod, prompts: Prompts, new: int) -> float:
    """Compile a method by decoding the first prompt; return the seconds."""
    start = time.perf_counter()
    measure(method, prompts[:1], new)
    return time.perf_counter() - start


def step_timing(method: DecodingMethod, prompts: Prompts, new: int) -> cost.StepTiming:
    """Time the programs of a Mirror-SD step of a batch on the first two devices, alone and together."""
    placement = Placement(mesh_of(jax.devices()[:1]), mesh_of(jax.devices()[1:2]))
    return cost.measure(method, placement, prompts, new, repeats=3)


def step_timings(method: DecodingMethod, prompts: Sequence[Prompts], new: int) -> cost.StepTiming:
    """Do as ``step_timing`` with several batches of one size, and put the steps together."""
    return cost.pooled([step_timing(method, batch, new) for batch in prompts])


class Worker:
    """A process with two host devices that measures settings on command (``_bench_worker``)."""

    def __init__(self, pair: str, eigen_threads: bool) -> None:
        threads = "true" if eigen_threads else "false"
        own = {"--xla_force_host_platform_device_count": "2", "--xla_cpu_multi_thread_eigen": threads}
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.split("=")[0] not in own]
        flags += [f"{name}={value}" for name, value in own.items()]
        environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "jaxspec.cli._bench_worker", pair]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout

    def send(self, command: Command, settings: Sequence[BenchSetting], prompts: Any, new: int) -> None:
        """Send a command without waiting for its results, one per setting."""
        pickle.dump((command, list(settings), prompts, new), self._commands)
        self._commands.flush()

    def receive(self) -> Any:
        """Return the oldest result that was not received yet.

        Raises:
            RuntimeError: the worker ended; its own message is on standard error.
        """
        try:
            return pickle.load(self._answers)
        except EOFError:
            status = self._process.wait()
            raise RuntimeError(f"a benchmark worker ended with status {status}; see its message above") from None

    def run(self, command: Command, setting: BenchSetting, prompts: Any, new: int) -> Any:
        """Send a command for one setting and return its result."""
        self.send(command, [setting], prompts, new)
        return self.receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()


def best_of(
    workers: dict[bool, Worker], settings: Sequence[BenchSetting], prompts: Prompts, new: int, rounds: int = 3
) -> BenchSetting:
    """Return the setting with the highest median tokens per second over interleaved rounds."""
    speeds: dict[BenchSetting, list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            run = workers[setting.eigen_threads].run(measure, setting, prompts, new)
            speeds[setting].append(run.tokens_per_second)
    return max(settings, key=lambda setting: float(np.median(speeds[setting])))
