"""The decoding part of the demo: every method at its best setting, in turns, and two of them on independent clocks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tqdm import tqdm

from jaxspec.analysis.clocks import Replayed, replayed
from jaxspec.cli._bench_methods import (
    BenchSetting,
    Measurement,
    Worker,
    best_of,
    measure,
    step_timings,
    timeline,
    warm,
)
from jaxspec.generation.trace import Span
from jaxspec.methods import DecodeSpec, candidates


@dataclass(frozen=True)
class DecodingSettings:
    """The decoding part.

    Attributes:
        prompts: held-out roles that are decoded, the first by id.
        prompt_tokens: length of each prompt.
        new_tokens: tokens decoded after each.
        rounds: interleaved measurements of each method at its best settings.
        windows: speculative windows γ tried.
        mirror: (window, branches) of Mirror-SD tried.
        num_candidates: κ.
    """

    prompts: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 128
    rounds: int = 5
    windows: tuple[int, ...] = tuple(range(1, 9))
    mirror: tuple[tuple[int, int], ...] = ((5, 4), (5, 8), (7, 4), (7, 8))
    num_candidates: int = 4


@contextmanager
def phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Time a block; add its seconds by name."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


@dataclass
class Decoded:
    """The decoding part.

    Attributes:
        settings: the best of each method.
        runs: the median of each.
        identical: whether all tokens agree.
        tokens_compared: of one method.
        spans: of Mirror-SD.
        independent: of the methods with a mesh for each model, on devices that share nothing.
    """

    settings: dict[str, BenchSetting]
    runs: dict[str, Measurement]
    identical: bool
    tokens_compared: int
    spans: list[Span]
    independent: dict[str, Replayed]


#: Vanilla speculative decoding with a mesh for each model, what the paper compares with; "speculative" has all devices.
SAME_PLACEMENT = "speculative, two meshes"


def decode(
    settings: DecodingSettings, pair: str, prompts: list[list[int]], seconds: dict[str, float], progress: bool
) -> Decoded:
    """Decode the prompts with every method at its best setting, in turns."""
    new = settings.new_tokens
    with Worker(pair, True) as threaded, Worker(pair, False) as single:
        workers = {True: threaded, False: single}
        with phase(seconds, "choose_settings"):
            best, apart = _choose(workers, settings, prompts[:1], progress)
        with phase(seconds, "decode"):
            runs: dict[str, list[Measurement]] = {name: [] for name in best}
            for _ in tqdm(range(settings.rounds), "measure", disable=not progress):
                for name, setting in best.items():
                    runs[name].append(workers[setting.eigen_threads].run(measure, setting, prompts, new))
            mirrored = best["mirror"]
            spans = workers[mirrored.eigen_threads].run(timeline, mirrored, prompts, new)
            independent = {name: _independent(single, tried, prompts, new) for name, tried in apart.items()}
    median = {name: sorted(many, key=lambda m: m.seconds)[len(many) // 2] for name, many in runs.items()}
    everything = [m.tokens for many in runs.values() for m in many]
    identical = all(tokens == everything[0] for tokens in everything)
    return Decoded(best, median, identical, sum(map(len, everything[0])), spans, independent)


def _independent(worker: Worker, tried: list[BenchSetting], prompts: list[list[int]], new: int) -> Replayed:
    """Return the steps of the fastest on devices that share nothing: one core each, programs timed alone.

    The setting is chosen on a prompt, its steps are those after others.
    """

    def replay(setting: BenchSetting, some: list[list[int]]) -> Replayed:
        return replayed(worker.run(step_timings, setting, [[each] for each in some], new))

    best = max(tried, key=lambda setting: replay(setting, prompts[:1]).tokens_per_second)
    return replay(best, prompts[1:3] or prompts)


def _choose(
    workers: dict[bool, Worker], settings: DecodingSettings, prompts: list[list[int]], progress: bool
) -> tuple[dict[str, BenchSetting], dict[str, list[BenchSetting]]]:
    """Return each method's best setting on a prompt, and what was tried with a mesh for each model.

    All are tried without Eigen threads, the winner also with them. Plain decoding tries all combinations of devices and
    threads, speculative decoding at its best window. On two meshes vanilla speculative decoding has that window, or one
    of Mirror-SD's.
    """
    s, new = settings, settings.new_tokens
    plain = [BenchSetting(DecodeSpec(), devices, threads) for devices in (1, 2) for threads in (True, False)]
    mirrors = [DecodeSpec(window, candidates.mirror(budget), s.num_candidates) for window, budget in s.mirror]
    choices = {
        "autoregressive": plain,
        "speculative": [BenchSetting(DecodeSpec(window), eigen_threads=False) for window in s.windows],
        "mirror": [BenchSetting(spec, eigen_threads=False) for spec in mirrors],
    }
    _warm(workers, [setting for many in choices.values() for setting in many], prompts, new, progress)
    best = {name: best_of(workers, many, prompts, new) for name, many in choices.items()}
    vanilla = best["speculative"]
    windows = dict.fromkeys((vanilla.spec.window, *(window for window, _ in s.mirror)))
    apart = [BenchSetting(DecodeSpec(window, candidates.none()), eigen_threads=False) for window in windows]
    _warm(workers, apart, prompts, new, progress)
    best[SAME_PLACEMENT] = best_of(workers, apart, prompts, new)
    both = {name: [replace(one, eigen_threads=threads) for threads in (True, False)] for name, one in best.items()}
    both["speculative"] += [replace(one, devices=2) for one in both["speculative"]]
    rest = [
        setting for name, many in both.items() if name != "autoregressive" for setting in many if setting != best[name]
    ]
    _warm(workers, rest, prompts, new, progress)
    chosen = {name: best_of(workers, many, prompts, new) for name, many in both.items()}
    best = {name: chosen[name] for name in ("autoregressive", "speculative", SAME_PLACEMENT, "mirror")}
    return best, {SAME_PLACEMENT: apart, "mirror": choices["mirror"]}


def _warm(
    workers: dict[bool, Worker], choices: list[BenchSetting], prompts: list[list[int]], new: int, progress: bool
) -> None:
    """Compile settings, in both workers at once."""
    choices = sorted(choices, key=lambda setting: setting.eigen_threads, reverse=True)
    for threads, worker in workers.items():
        worker.send(warm, [setting for setting in choices if setting.eigen_threads == threads], prompts[:1], new)
    for setting in tqdm(choices, "compile", disable=not progress):
        workers[setting.eigen_threads].receive()
