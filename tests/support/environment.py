"""What must be set before jax is imported, by the tests and by ``make matrix``."""

import os
from importlib.metadata import version

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
# Tests compile programs as users do. `make test` sets QUICK_COMPILE=1 for those marked `slow`, which compile some
# thousand programs and run most of them once: XLA then skips most optimisations, in the processes that tests start too.
# With jaxlib 0.10 it also takes the older kernels, one module a program, and no YNNPACK: half the time to compile.
if os.environ.get("QUICK_COMPILE"):
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] += " --xla_cpu_experimental_ynn_fusion_type="
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")


def one_device() -> dict[str, str]:
    """The environment of another process, without the tests' devices."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICES)]
    return {**os.environ, "XLA_FLAGS": " ".join(flags)}
