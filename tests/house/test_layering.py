"""Who may import whom: the directions of the two packages, held by walking every import statement."""

import ast
import importlib.util
import itertools
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Lower layers first; a module imports from its own line and the lines above it, without cycles. A subpackage stands
# for all its modules. The package's own name is its facade (`__init__`), above everything it gathers.
ORDER = {
    "jaxfed": """
        checkpoint types checks places columns fingerprints losses
        tree
        stateful
        trainable precision
        algorithm
        gradients corrections optimisers
        server local plans samplers
        compose stores
        uplink
        algorithms
        data models privacy compression robust
        metrics shakespeare
        rounds history identity
        autoplan engines probing
        resume
        state
        simulate
        flower plot
        jaxfed
        commands
        __main__
    """,
    "jaxspec": """
        config files chat pieces text compilations processes
        types
        sampling
        acceptance
        checks vocabulary models tokenizer windows verify cache sharding channel exits candidates
        decoding
        branches
        lookahead
        drafts
        fallbacks
        drafting
        autoregressive speculative mirror
        requests stopping
        trace
        generate
        latency
        primitives surface
        train
        stream_training
        probe
        foresight
        tune
        federated
        specbench plot zoo
        bench demo
        jaxspec
        commands
        __main__
    """,
}
LAYER = {
    (package, name): rank
    for package, order in ORDER.items()
    for rank, line in enumerate(order.strip().splitlines())
    for name in line.split()
}
# What must not reach what, not even through others.
BLIND = [
    ("jaxfed.algorithms", "jaxfed.models"),
    ("jaxfed.algorithms", "jaxfed.data"),
    ("jaxspec.verify.verdict", "jaxspec.models"),
    ("jaxspec.verify.sampling", "jaxspec.models"),
]


@cache
def sources() -> dict[str, Path]:
    """Every module of both packages by dotted name."""
    files = itertools.chain.from_iterable(sorted((ROOT / package).rglob("*.py")) for package in ORDER)
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(name: str, source: str, is_package: bool, modules: set[str]) -> set[str]:
    """The dotted names which the source of module `name` imports, as modules where these are known."""
    found = set()
    parent = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & modules
            if inner - modules:
                found.add(base)
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Module to imported names, its own parent packages left out (a facade gathers; it is no dependency upwards)."""
    modules = set(sources())
    return {
        name: imported(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", modules)
        for name, path in sources().items()
    }


def place(module: str) -> tuple[str, str]:
    """Package and name under which ORDER lists a module."""
    package, _, rest = module.partition(".")
    return package, rest.split(".")[0] or package


def reachable(start: str) -> set[str]:
    """Modules that `start`, a module or subpackage, needs directly or through others."""
    seen: set[str] = set()
    queue = [name for name in graph() if name == start or name.startswith(f"{start}.")]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += graph().get(name, ())
    return seen


def violations(name: str, imports: set[str]) -> list[str]:
    """What breaks the directions between the two packages, in words."""
    own = name.split(".")[0]
    wrong = []
    for other in sorted(imports):
        package, _, rest = other.partition(".")
        if package not in ORDER or package == own:
            continue
        if own == "jaxfed":
            wrong.append(f"{name} imports {other}: jaxfed knows nothing of jaxspec")
        elif not f"{name}.".startswith("jaxspec.federated.") and other != "jaxfed.checkpoint":
            wrong.append(f"{name} imports {other}: only jaxspec.federated goes beyond jaxfed.checkpoint")
        elif any(part.startswith("_") for part in rest.split(".")):
            wrong.append(f"{name} imports {other}: not a public name")
    return wrong


def test_packages_keep_their_direction():
    assert not [line for name, imports in graph().items() for line in violations(name, imports)]


def test_federated_uses_public_names_only():
    paths = [path for name, path in sources().items() if f"{name}.".startswith("jaxspec.federated.")]
    assert paths
    names = {
        alias.name
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxfed"
        for alias in node.names
    }
    assert not {name for name in names if name.startswith("_") or name == "*"}


def test_checkpoint_imports_no_sibling():
    ours = {name for name in reachable("jaxfed.checkpoint") if name.split(".")[0] in ORDER}
    assert ours == {name for name in sources() if f"{name}.".startswith("jaxfed.checkpoint.")}


def test_nothing_needs_the_adapter_to_flower():
    theirs = {name for name in sources() if f"{name}.".startswith("jaxfed.flower.")}
    assert theirs
    assert not [
        f"{name} imports {theirs & imports}"
        for name, imports in graph().items()
        if name not in theirs and theirs & imports
    ]


def test_every_module_has_a_place():
    missing = sorted(name for name in sources() if place(name) not in LAYER)
    assert not missing, "add each to ORDER above, on the lowest line which is above all it imports"


def test_lower_layers_import_no_higher_ones():
    assert not [
        f"{name} imports {other}, which is above it"
        for name, imports in graph().items()
        for other in sorted(imports)
        if place(name) in LAYER and LAYER.get(place(other), -1) > LAYER[place(name)]
        if place(name)[0] == place(other)[0]
    ]


def test_imports_have_no_cycle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize(("start", "hidden"), BLIND, ids=[f"{start} without {hidden}" for start, hidden in BLIND])
def test_blind_to(start, hidden):
    assert not {name for name in reachable(start) if name == hidden or name.startswith(f"{hidden}.")}


def test_jaxfed_runs_without_jaxspec():
    """The statement walk cannot see imports made at run time; a fresh interpreter can."""
    modules = [name for name in sources() if name.split(".")[0] == "jaxfed" and not name.endswith("__main__")]
    if importlib.util.find_spec("flwr") is None:
        modules = [name for name in modules if not f"{name}.".startswith("jaxfed.flower.")]
    program = f"""
import importlib, sys
for name in {modules!r}: importlib.import_module(name)
sys.exit(", ".join(name for name in sys.modules if name.split(".")[0] == "jaxspec") or None)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import jaxspec.mirror as m", {"jaxspec.mirror"}),
        ("from jaxspec import mirror", {"jaxspec.mirror"}),
        ("from jaxspec import mirror, generate_all", {"jaxspec.mirror", "jaxspec"}),
        ("from .. import mirror", {"jaxspec.mirror"}),
        ("from .decoder import Decoder", {"jaxspec.models._decoder"}),
        ("def late():\n    from jaxspec.mirror import step", {"jaxspec.mirror"}),
    ],
)
def test_the_walk_sees(source, names):
    known = {"jaxspec", "jaxspec.mirror", "jaxspec.models", "jaxspec.models._decoder"}
    assert imported("jaxspec.loading.families", source, is_package=False, modules=known) == names


def test_the_rules_refuse():
    assert violations("jaxfed.simulate", {"jaxspec.mirror"})
    assert violations("jaxspec.mirror", {"jaxfed.core.tree"})
    assert violations("jaxspec.federated", {"jaxfed._private"})
    assert violations("jaxspec.federated._runs", {"jaxfed.simulate._block"})
    assert violations("jaxspec.federatedlike", {"jaxfed.data"})
    assert not violations("jaxspec.federated", {"jaxfed", "jaxfed.data", "jax"})
    assert not violations("jaxspec.federated._recipe", {"jaxfed.privacy", "jaxspec.methods.checks"})
    assert not violations("jaxspec.mirror", {"jaxfed.checkpoint", "jaxspec.verify.verdict"})
