"""The strict environment of every test: eight devices, no implicit rank or dtype promotion, warnings are errors.

Warnings are set in pyproject.toml. Code that must relax a rule says so at the one call which needs it, for example
`with jax.numpy_dtype_promotion("standard")` around the application of an optax update.
"""

import gc
import importlib.util
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator

if "jax" in sys.modules:
    raise RuntimeError("expected to set XLA_FLAGS before jax is imported, but a pytest plugin has imported it already")

from tests.promises import PROMISES  # noqa: E402
from tests.support import environment  # noqa: E402, F401

# isort: split
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

STRICT = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_enable_x64": False,
}
for _name, _value in STRICT.items():
    jax.config.update(_name, _value)
gc.set_threshold(50_000, 20, 100)  # tracing makes many short-lived objects, which the default looks through too often

TESTS = pathlib.Path(__file__).parent
#: Modules that `make docs` installs.
DOCS = ("mkdocs", "mkdocstrings", "mkdocs_gen_files", "nbconvert", "l2m4m")
#: Files and folders that take a minute or more: begun first, so that no worker is left alone with one in the end.
LONG = (
    "jaxspec/methods/test_identity.py", "jaxspec/methods/test_policies.py", "house/test_docs.py", "jaxfed/flower",
    "jaxfed/algorithms/test_conformance.py", "jaxspec/federated", "jaxspec/devices/test_processes.py",
    "jaxspec/drafts/test_streams.py", "jaxspec/analysis", "house/test_notebooks.py", "house/test_benchmarks.py", "long",
)  # fmt: skip

# Properties: the same few examples each time; `HYPOTHESIS_PROFILE=long` draws others, and many.
settings.register_profile("short", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("long", settings.get_profile("short"), derandomize=False, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


def world() -> dict[str, object]:
    """What one test could leave behind for the next."""
    settings = {name: getattr(jax.config, name) for name in STRICT}
    variables = {name: value for name, value in os.environ.items() if name.startswith(("JAX", "XLA"))}
    return settings | variables | {"working folder": os.getcwd()}


@pytest.fixture(autouse=True)
def same_world() -> Iterator[None]:
    """Seeds the global generators before a test, and fails a test which leaves another world to the next one."""
    random.seed(0)
    np.random.seed(0)
    before = world()
    yield
    after = world()
    for name, value in STRICT.items():
        jax.config.update(name, value)
    assert after == before, "the test changed more than itself: use jax's contexts, monkeypatch.setenv or .chdir"


@pytest.fixture(autouse=True)
def programs_let_go() -> Iterator[None]:
    """Frees compiled programs before they use up the 65,530 memory mappings that Linux lets a process have."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 2 MiB; skipped where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mount of a small tmpfs is not allowed here: run as root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="random order of files, and of tests in each")


def begins(item: pytest.Item, name: str) -> bool:
    """Whether a test is the one named, a case of it, or in the file or folder of that name."""
    path, _, test = name.partition("::")
    own = item.nodeid.partition("::")[2]
    inside = item.path.is_relative_to(TESTS / path)
    return inside and (not test or own == test or own.startswith(f"{test}["))


def mark_fast(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests that `PROMISES` names; refuses a name without a file, or without a test in a collected file."""
    paths, some = {item.path for item in items}, any("::" in each for each in config.args)
    for name in (name for names in PROMISES.values() for name in names):
        named, file = [item for item in items if begins(item, name)], TESTS / name.partition("::")[0]
        for item in named:
            item.add_marker(pytest.mark.fast)
        if not named and (not file.exists() or (file in paths and not some)):
            raise pytest.UsageError(f"tests/promises.py names {name}, but there is no such test: rename it there too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mark_fast(config, items)
    items.sort(key=lambda item: next((rank for rank, name in enumerate(LONG) if begins(item, name)), len(LONG)))
    seed = config.getoption("--shuffle")
    if seed is not None:
        chance = random.Random(seed)
        chance.shuffle(items)
        rank = {path: chance.random() for path in dict.fromkeys(item.path for item in items)}
        items.sort(key=lambda item: rank[item.path])
    for item in items:
        for marker in item.iter_markers("peers"):
            for module in marker.args or ("torch", "transformers"):
                if importlib.util.find_spec(module) is None:
                    item.add_marker(
                        pytest.mark.skip(
                            reason=f"{module} is not installed: make {'docs' if module in DOCS else 'setup PEERS=1'}"
                        )
                    )
