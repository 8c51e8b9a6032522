"""Number of HLO instructions of every compiled program of a step, to compare two versions of the source.

`python -m tests.long.op_counts` prints one line of JSON: program → instructions after optimisation, largest first.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

MODULE = re.compile(r"module_\d+\.(?P<name>.+?)\.(cpu|gpu|sm_.*?)_after_optimizations\.txt$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?[\w.-]+ = ", re.MULTILINE)


def decode() -> None:
    """One short decoding of the tiny pair by every method, greedy and sampled; all of its programs are compiled."""
    import jaxspec
    from tests.support.jaxspec import models

    methods = {
        "plain": jaxspec.autoregressive(models.target()),
        "speculative": models.speculative(4),
        "mirror": models.mirror(4, 4, policy=jaxspec.candidates.mirror(6)),
        "hybrid": models.mirror(4, 4, policy=jaxspec.candidates.hybrid(3, 3, num_candidates=4)),
    }
    for method in methods.values():
        for sampling in (jaxspec.Sampling(), jaxspec.Sampling(temperature=1.0, repetition_penalty=1.1)):
            jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, sampling=sampling)


def counts() -> dict[str, list[int]]:
    """Instructions of the programs of ``decode``, which runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_force_host_platform_device_count=8 --xla_dump_to={folder} --xla_dump_hlo_as_text"
        command = [sys.executable, "-c", "from tests.long.op_counts import decode; decode()"]
        subprocess.run(command, check=True, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})
        sizes_of = defaultdict(list)
        for file in Path(folder).iterdir():
            if match := MODULE.search(file.name):
                sizes_of[match["name"]].append(len(INSTRUCTION.findall(file.read_text())))
    return {name: sorted(sizes) for name, sizes in sorted(sizes_of.items(), key=lambda item: -max(item[1]))}


if __name__ == "__main__":
    print(json.dumps(counts()))
