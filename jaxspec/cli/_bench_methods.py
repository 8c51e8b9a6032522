"""Measuring decoding methods against each other: each at its own best settings, on the same cores.

Settings that need other XLA flags need processes of their own. A worker holds one process with its compiled methods and
measures on command, so that the parent can interleave methods (A B A B) while nothing else runs.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxspec.analysis import cost as latency
from jaxspec.devices.sharding import Placement, mesh_of
from jaxspec.drafts.streams import limited
from jaxspec.generation import generate
from jaxspec.generation.trace import Span, Timeline
from jaxspec.methods import autoregressive, candidates, mirror, speculative
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.verify.exits import LogitLens
from jaxspec.zoo import Pair, grow, load


@dataclass(frozen=True)
class Setting:
    """One way to decode.

    Attributes:
        method: "autoregressive", "speculative", or a policy of ``jaxspec.mirror`` (``candidates.named``).
        devices: devices of the target's mesh, for autoregressive decoding.
        eigen_threads: whether one operation may use several threads.
        window: γ.
        budget: R, branches rolled out; of the hybrid policy by either side.
        num_candidates: κ.
        streams: lookahead streams of the draft.
        growth: factors of width and depth, of the target and then of the draft (``zoo.grow``).
    """

    method: str
    devices: int = 1
    eigen_threads: bool = True
    window: int = 0
    budget: int = 0
    num_candidates: int = 1
    streams: int = 0
    growth: tuple[int, int, int, int] = (1, 1, 1, 1)

    def __str__(self) -> str:
        parts = [f"window {self.window}"] * (self.window > 0) + [f"{self.budget} branches"] * (self.budget > 0)
        parts += [f"{self.streams} streams"] * (self.streams > 0)
        plain = self.method in ("autoregressive", "speculative")
        devices = f"{self.devices} device{'s' * (self.devices > 1)}" if plain else "2 meshes"
        return ", ".join([*parts, devices, f"threads {'on' if self.eigen_threads else 'off'}"])


#: Token ids of prompts.
Prompts = Sequence[Sequence[int]]


class Measurement(NamedTuple):
    """One run over some prompts: decoded tokens, seconds, and the summed statistics; a step's without the prompt."""

    tokens: list[list[int]]
    seconds: float
    accepted_length: float
    reuse_rate: float
    step_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens over seconds, prefill included."""
        return sum(map(len, self.tokens)) / self.seconds


def build(setting: Setting, pair: Pair) -> DecodingMethod:
    """The method of a setting, with a pair that is grown already; a policy's on two meshes."""
    if setting.method == "autoregressive":
        return autoregressive(pair.target, mesh_of(jax.devices()[: setting.devices]))
    draft = limited(pair.streaming or pair.draft, setting.streams) if setting.streams else pair.draft
    if setting.method == "speculative":
        return speculative(pair.target, draft, setting.window)
    return mirror(
        pair.target,
        draft,
        window=setting.window,
        num_candidates=setting.num_candidates,
        exit_layer=pair.exit_layer,
        exit=pair.exit,
        policy=candidates.named(setting.method, setting.budget),
        placement=_two_meshes(),
    )


def _two_meshes() -> Placement:
    return Placement(mesh_of(jax.devices()[:1]), mesh_of(jax.devices()[1:2]))


def grown(pair: Pair, growth: tuple[int, int, int, int]) -> Pair:
    """A pair whose models are as much larger, with the same function; its exit is at the same fraction of the depth.

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
    """Decodes ``new`` tokens after each prompt, one by one."""
    results = [generate(method, [prompt], new) for prompt in prompts]
    stats = [result.stats for result in results]
    return Measurement(
        [result.tokens[0] for result in results],
        sum(s.prefill_seconds + s.decode_seconds for s in stats),
        sum(s.verified for s in stats) / sum(s.steps for s in stats),
        sum(s.reused for s in stats) / max(sum(s.needed for s in stats), 1),
        sum(s.decode_seconds for s in stats) / sum(s.steps for s in stats),
    )


class Worker:
    """A process with two forced host devices that measures settings on command."""

    def __init__(self, pair: str, eigen_threads: bool) -> None:
        self.eigen_threads = eigen_threads
        threads = "true" if eigen_threads else "false"
        own = {"--xla_force_host_platform_device_count": "2", "--xla_cpu_multi_thread_eigen": threads}
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.split("=")[0] not in own]
        flags += [f"{name}={value}" for name, value in own.items()]
        environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "jaxspec.cli._bench_methods", pair]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout

    def send(self, command: str, settings: Sequence[Setting], prompts: Prompts, max_new_tokens: int) -> None:
        """Gives a command without waiting for its answers, one a setting."""
        tried = [asdict(setting) for setting in settings]
        request = {"command": command, "settings": tried, "prompts": prompts, "new": max_new_tokens}
        print(json.dumps(request), file=self._commands, flush=True)

    def receive(self) -> Any:
        """The oldest answer not yet received.

        Raises:
            RuntimeError: the worker ended; its own message stands on standard error.
        """
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"a benchmark worker ended with status {self._process.wait()}; see its message above")
        return json.loads(line)

    def measure(self, setting: Setting, prompts: Prompts, max_new_tokens: int) -> Measurement:
        """Measures one setting now."""
        self.send("measure", [setting], prompts, max_new_tokens)
        return Measurement(*self.receive())

    def timeline(self, setting: Setting, prompts: Prompts, max_new_tokens: int) -> list[Span]:
        """Decodes the first prompt under a timeline."""
        self.send("timeline", [setting], prompts[:1], max_new_tokens)
        return [Span(*span) for span in self.receive()]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process; at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()


def best_of(
    workers: dict[bool, Worker], settings: Sequence[Setting], prompts: Prompts, new: int, rounds: int = 3
) -> Setting:
    """The setting with the highest median tokens per second over interleaved rounds."""
    speeds: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            speeds[setting].append(workers[setting.eigen_threads].measure(setting, prompts, new).tokens_per_second)
    return max(settings, key=lambda setting: float(np.median(speeds[setting])))


def batch_scheduling() -> None:
    """Tells Linux that this process is after throughput: a thread that wakes up does not preempt one that works.

    XLA's thread pools wake up and spin several times a step; where they are as many as the cores, that costs Mirror-SD,
    which keeps all cores busy, a fifth of its speed. To be called before jax makes its threads; nothing elsewhere.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(pair_name: str) -> None:
    """The worker's loop: one JSON command a line in, one JSON answer a setting out; ends with its input.

    Settings of one command are compiled side by side: only "warm" has several.
    """
    batch_scheduling()
    pair = load(pair_name)
    of_size = lru_cache(2)(partial(grown, pair))
    built = cache(lambda setting: build(setting, of_size(setting.growth)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line in sys.stdin:
            request = json.loads(line)
            settings = [Setting(**{**each, "growth": tuple(each["growth"])}) for each in request["settings"]]
            methods = [built(setting) for setting in settings]
            run = partial(COMMANDS[request["command"]], prompts=request["prompts"], new=request["new"])
            for answer in pool.map(run, methods) if len(methods) > 1 else map(run, methods):
                print(json.dumps(answer), flush=True)


def _timeline(method: DecodingMethod, prompts: Prompts, new: int) -> list[Span]:
    with Timeline() as watch:
        generate(method, prompts[:1], new, watch=watch)
        return watch.spans()


def _warm(method: DecodingMethod, prompts: Prompts, new: int) -> float:
    start = time.perf_counter()
    measure(method, prompts[:1], new)
    return time.perf_counter() - start


def _law(method: DecodingMethod, prompts: Prompts, new: int) -> dict[str, float | None]:
    """Seconds of a step of mirror decoding: as it is, by the law; and the share of what may be hidden that is."""
    found = latency.measure(method, _two_meshes(), [prompts[0]], new, repeats=2)
    return {"step": found.step, "law": found.law, "overlap": found.overlap, **vars(found.parts)}


#: What a worker understands.
COMMANDS: dict[str, Callable[..., Any]] = {
    "warm": _warm,
    "measure": measure,
    "timeline": _timeline,
    "law": _law,
}

if __name__ == "__main__":
    main(sys.argv[1])
