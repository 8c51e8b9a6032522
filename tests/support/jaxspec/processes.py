"""One process of two that decode together: the target in process 0, the draft in process 1.

`python -m tests.support.jaxspec.processes OUT PORT INDEX DEVICES SETTINGS [DYING]` writes the results of process INDEX
with each of the comma-separated settings to OUT/INDEX.json. With DYING, that process ends itself within `generate`.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax

import jaxspec
from jaxspec import Sampling
from jaxspec.devices.channel import RemoteChannel
from jaxspec.devices.processes import is_local, shapes
from jaxspec.generation.trace import Timeline
from jaxspec.methods import candidates, fallbacks
from jaxspec.verify import acceptance
from tests.support.jaxspec import models


def reading():
    """A draft that reads one hidden state before the exit, and one behind it; made once the processes are connected."""
    from jaxspec.drafts import Draft
    from jaxspec.verify import Reads
    from tests.jaxspec.drafts.test_own_draft import TABLE, TAP, Bigrams

    return Draft(Bigrams(Reads((2, 3))), (TABLE, TAP))


def fused():
    """A draft whose hidden states the target's process fuses, with its own part of the parameters."""
    from tests.support.jaxspec import reading_rows

    return reading_rows.draft("eagle3 early")


GREEDY, SAMPLED = Sampling(), Sampling(temperature=1.0, seed=3)
#: Options of ``mirror``, and how tokens are drawn.
SETTINGS = {
    "mirror": ({}, GREEDY),
    "mirror sampled": ({}, SAMPLED),
    "saguaro": ({"policy": candidates.saguaro(6, num_candidates=4)}, GREEDY),
    "saguaro sampled": ({"policy": candidates.saguaro(6, num_candidates=4)}, SAMPLED),
    "pearl": ({"policy": candidates.pearl()}, SAMPLED),
    "none": ({"policy": candidates.none()}, GREEDY),
    "hybrid": ({"policy": candidates.hybrid(3, 3, num_candidates=4)}, replace(SAMPLED, repetition_penalty=1.1)),
    "look-up": ({"fallback": fallbacks.NGram(2), "policy": candidates.mirror(1)}, GREEDY),
    "ratio": ({"acceptance": acceptance.ratio(4)}, SAMPLED),
    "hidden states": ({"draft": reading, "policy": candidates.mirror(4)}, SAMPLED),
    "fused hidden states": ({"draft": fused, "policy": candidates.mirror(4)}, SAMPLED),
}
#: Transfers before the first step: the first window; and of a draft that reads hidden states, those of the prompts.
STARTS = dict.fromkeys(SETTINGS, 1) | {"hidden states": 2, "fused hidden states": 2}
#: What crosses in a step: window, message, verdict; a whole pass has no message.
CROSSINGS = dict.fromkeys(SETTINGS, 3) | dict.fromkeys(("saguaro", "saguaro sampled", "pearl", "none"), 2)


def decode(name, placement=None, **more):
    """Result of one setting as plain values, with the counts of the run and its steps."""
    building, sampling = SETTINGS[name]
    building = {key: value() if key == "draft" else value for key, value in building.items()}
    method, seen = models.mirror(placement=placement or models.meshes(), **building, **more), []
    watch = lambda lane, name, outputs: seen.append(name)  # noqa: E731
    result = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, sampling=sampling, watch=watch)
    stats = result.stats
    return {
        "tokens": result.tokens,
        "finish": result.finish_reason,
        "log_probabilities": result.log_probabilities,
        "counts": [stats.steps, stats.new_tokens, stats.accepted, stats.needed, stats.reused],
        "steps": seen.count("select"),
    }


def traced(placement=None):
    """Which programs a timeline holds, and the outcome of every step."""
    method = models.mirror(placement=placement or models.meshes())
    with Timeline() as watch:
        jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, watch=watch)
        names = sorted({f"{span.lane} {span.name}" for span in watch.spans()})
        return {"names": names, "outcomes": [[list(map(int, part)) for part in step] for step in watch.outcomes()]}


def plain(name):
    """Tokens of plain decoding."""
    method, sampling = jaxspec.autoregressive(models.target()), SETTINGS[name][1]
    return jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, sampling=sampling).tokens


def counted(run):
    """Result of a run, and the number of transfers during it."""
    channels, original = [], RemoteChannel.__init__

    def recorded(self, *meshes):
        channels.append(self)
        original(self, *meshes)

    RemoteChannel.__init__ = recorded
    try:
        return run() | {"crossed": sum(channel.transfers for channel in channels)}
    finally:
        RemoteChannel.__init__ = original


def owned(model, mesh):
    """A model without weights where another process runs it."""
    return model if is_local(mesh) else model._replace(params=shapes(model.params))


def refused():
    """Error messages for invalid meshes."""
    first, second = jax.local_devices(process_index=0), jax.local_devices(process_index=1)
    both, own, other = (jaxspec.mesh_of(list(devices)) for devices in ((first[0], second[0]), first[:1], second[:1]))
    other = own if jax.process_index() else other
    calls = (
        lambda: models.mirror(placement=jaxspec.Placement(both, both)),
        lambda: models.mirror(placement=jaxspec.Placement(other, other)),
        lambda: jaxspec.autoregressive(models.target(), other),
        lambda: models.speculative(mesh=other),
        lambda: jaxspec.analysis.cost.measure(None, jaxspec.Placement(own, other), []),
    )
    return [message_of(act) for act in calls]


def message_of(act):
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


def survive(placement, dying):
    """Decodes until the other process ends; what is raised then, and how long it took."""
    selected = []

    def watch(lane, name, outputs):
        selected.extend([time.perf_counter()] if name == "select" else [])
        if len(selected) == 3 and jax.process_index() == dying:
            jax.block_until_ready(outputs)
            os._exit(0)

    try:
        jaxspec.generate(models.mirror(placement=placement), models.PROMPTS, 40, watch=watch)
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of them is JAX's choice, by when it notices
        return {"error": str(error), "seconds": time.perf_counter() - selected[-1]}


def main(out, port, index, devices, settings, dying=None):
    for name, value in (("numpy_rank_promotion", "raise"), ("numpy_dtype_promotion", "strict")):
        jax.config.update(f"jax_{name}", value)
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index), heartbeat_timeout_seconds=10)
    placement = jaxspec.Placement(*(jaxspec.mesh_of(jax.local_devices(process_index=side)) for side in (0, 1)))
    if dying is not None:
        Path(out, f"{index}.json").write_text(json.dumps(survive(placement, int(dying))))
        os._exit(0)  # an ordinary end would wait for the other process, until its heartbeat is missed
    pair = {"target": owned(models.target(), placement.target), "draft": owned(models.draft(), placement.draft)}
    results = {name: counted(lambda name=name: decode(name, placement)) for name in settings.split(",")}
    results["own weights alone"] = decode("mirror", placement, **pair)
    results["traced"] = traced(placement)
    results["refused"] = refused()
    stops = [[0], [1]][int(index)]
    results["apart"] = message_of(
        lambda: jaxspec.generate(models.mirror(placement=placement), models.PROMPTS, 4, stop=stops)
    )
    results["rendezvous"] = jaxspec.analysis.cost.rendezvous(placement)
    results["plain"] = plain("mirror")
    Path(out, f"{index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
