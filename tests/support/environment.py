"""What must be set before jax is imported, by the tests and by ``make matrix``."""

import os
from importlib.metadata import version

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
AS_USERS = bool(os.environ.get("AS_USERS"))
if not AS_USERS and version("jaxlib").startswith("0.10."):
    # Kernels of XLA's older kind: the same numbers, compiled in half the time. Later versions have no choice. Each
    # program as one module, not in up to 32 parts: a quarter less again. No YNNPACK, which prepares each product anew.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] += " --xla_cpu_experimental_ynn_fusion_type="
if not AS_USERS:
    # Most of the tests' time would otherwise go into optimising programs that run once; processes that they start too.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")


def one_device() -> dict[str, str]:
    """The environment of another process, without the tests' devices."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICES)]
    return {**os.environ, "XLA_FLAGS": " ".join(flags)}
