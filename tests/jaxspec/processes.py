"""One process of two that decode together: the target in process 0, the draft in process 1.

`python -m tests.jaxspec.processes OUT PORT INDEX DEVICES SETTINGS [LAST]` writes what process INDEX found with each of the
comma-separated settings to OUT/INDEX.json. Process 1 dies after LAST steps, if given.
"""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

import jaxspec
from jaxspec import acceptance, candidates, fallbacks
from jaxspec.channel import Remote
from jaxspec.processes import here, shapes
from jaxspec.trace import Timeline
from tests.jaxspec import models

SAMPLED = {"temperature": 1.0, "seed": 3}
#: Options of ``mirror`` and of ``generate``.
SETTINGS = {
    "mirror": ({}, {}),
    "mirror sampled": ({}, SAMPLED),
    "saguaro": ({"policy": candidates.saguaro(6, num_candidates=4)}, {}),
    "saguaro sampled": ({"policy": candidates.saguaro(6, num_candidates=4)}, SAMPLED),
    "pearl": ({"policy": candidates.pearl()}, SAMPLED),
    "none": ({"policy": candidates.none()}, {}),
    "hybrid": ({"policy": candidates.hybrid(3, 3, num_candidates=4)}, SAMPLED | {"repetition_penalty": 1.1}),
    "look-up": ({"fallback": fallbacks.NGram(2), "policy": candidates.mirror(1)}, {}),
    "ratio": ({"acceptance": acceptance.ratio(4)}, SAMPLED),
}
#: A whole pass has no message.
CROSSINGS = dict.fromkeys(SETTINGS, 3) | dict.fromkeys(("saguaro", "saguaro sampled", "pearl", "none"), 2)


def decode(name, placement=None, **more):
    """What one setting gives, as plain values; the counts of a run are part of it."""
    building, asking = SETTINGS[name]
    method = models.mirror(placement=placement or models.meshes(), **building, **more)
    with Timeline() as watch:
        found = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, **asking, watch=watch)
        outcomes, lanes = watch.outcomes(), sorted({span.lane + " " + span.name for span in watch.spans()})
    stats = found.stats
    counts = [stats.steps, stats.new_tokens, stats.accepted, stats.needed, stats.reused]
    told = [[list(map(int, part)) for part in outcome] for outcome in outcomes]
    return {
        "tokens": found.tokens,
        "finish": found.finish_reason,
        "log_probabilities": found.log_probabilities,
        "counts": counts,
        "outcomes": told,
        "lanes": lanes,
    }


def plain(name):
    """What plain decoding gives."""
    method, asking = jaxspec.autoregressive(models.target()), SETTINGS[name][1]
    return jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, **asking).tokens


def counted(run):
    """What a run gives, and how often something crossed meanwhile."""
    made, kept = [], Remote.__init__

    def noted(self, *meshes):
        made.append(self)
        kept(self, *meshes)

    Remote.__init__ = noted
    try:
        return run() | {"crossed": sum(channel.crossed for channel in made)}
    finally:
        Remote.__init__ = kept


def owned(model, mesh):
    """A model without weights where another process runs it."""
    return model if here(mesh) else model._replace(params=shapes(model.params))


def refused():
    """What is said of meshes that cannot be."""
    first, second = jax.local_devices(process_index=0), jax.local_devices(process_index=1)
    both, own, other = (jaxspec.mesh_of(list(devices)) for devices in ((first[0], second[0]), first[:1], second[:1]))
    other = own if jax.process_index() else other
    tried = (
        lambda: models.mirror(placement=jaxspec.Placement(both, both)),
        lambda: models.mirror(placement=jaxspec.Placement(other, other)),
        lambda: jaxspec.autoregressive(models.target(), other),
        lambda: models.speculative(mesh=other),
        lambda: jaxspec.latency.measure(None, jaxspec.Placement(own, other), []),
    )
    return [said(act) for act in tried]


def said(act):
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


def dying(last):
    """A watch that ends its process with the selection of step ``last``."""
    steps = []

    def watch(lane, name, outputs):
        steps.extend([name] if name == "select" else [])
        if len(steps) == last:
            np.asarray(outputs)
            os._exit(3)

    return watch


def main(out, port, index, devices, settings, last=None):
    for name, value in (("numpy_rank_promotion", "raise"), ("numpy_dtype_promotion", "strict")):
        jax.config.update(f"jax_{name}", value)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index), heartbeat_timeout_seconds=10)
    placement = jaxspec.Placement(*(jaxspec.mesh_of(jax.local_devices(process_index=side)) for side in (0, 1)))
    if last is not None:
        watch = dying(int(last)) if index == "1" else jaxspec.decoding.unwatched
        jaxspec.generate(models.mirror(placement=placement), models.PROMPTS, 40, watch=watch)
        return
    pair = {"target": owned(models.target(), placement.target), "draft": owned(models.draft(), placement.draft)}
    found = {name: counted(lambda name=name: decode(name, placement)) for name in settings.split(",")}
    found["own weights alone"] = decode("mirror", placement, **pair)
    found["refused"] = refused()
    found["rendezvous"] = jaxspec.latency.rendezvous(placement)
    found["plain"] = plain("mirror")
    Path(out, f"{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
