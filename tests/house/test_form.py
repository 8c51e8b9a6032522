"""The form of the packages, as CONTRIBUTING states it: sizes, arguments, names, and what classes are for."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for package in ("jaxfed", "jaxspec")
    for path in sorted((ROOT / package).rglob("*.py"))
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = [
    (f"{path}: {node.name}", node)
    for path, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, Function)
]
CLASSES = [(path, node) for path, tree in MODULES.items() for node in tree.body if isinstance(node, ast.ClassDef)]
#: Has the signature of ``jax.lax.conv_general_dilated``, which it replaces.
MANY_ARGUMENTS = {"jaxfed/models/_convolution.py: conv_general_dilated"}
#: A row of the table of families; all that a tokenizer's files say.
MANY_FIELDS = {"DecoderConfig", "Text"}


def docstring_lines(function):
    """Lines of the docstrings of a function and of those within it."""
    inside = [
        node for node in ast.walk(function) if isinstance(node, Function | ast.ClassDef) and ast.get_docstring(node)
    ]
    return sum(node.body[0].end_lineno - node.body[0].lineno + 1 for node in inside)


def dataclass_options(node):
    """The arguments of ``@dataclass``, as source; None if the class is no dataclass."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called) in ("dataclass", "dataclasses.dataclass"):
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
    return None


def test_files_have_at_most_400_lines():
    lengths = {path: (ROOT / path).read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > 400}


def test_functions_have_at_most_60_lines():
    """Decorators and docstrings aside."""
    lengths = {name: node.end_lineno - node.lineno + 1 - docstring_lines(node) for name, node in FUNCTIONS}
    assert not {name: length for name, length in lengths.items() if length > 60}


def test_functions_have_at_most_ten_arguments():
    counts = {}
    for name, node in FUNCTIONS:
        named = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        counts[name] = len([each for each in named if each not in ("self", "cls")])
    assert not {name: count for name, count in counts.items() if count > 10 and name not in MANY_ARGUMENTS}


def test_no_function_has_the_name_of_its_module():
    """Nor has a name that a package offers the name of one of its files: ``import a.b as c`` could mean either."""
    wrong = []
    for path, tree in MODULES.items():
        folder, imports = Path(path).parent, [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        wrong += [path for node in tree.body if isinstance(node, Function) and node.name == Path(path).stem]
        if path.endswith("__init__.py"):
            files = {each.stem for each in (ROOT / folder).iterdir() if each.suffix == ".py" or each.is_dir()}
            own = folder.as_posix().replace("/", ".")
            names = {alias.asname or alias.name for node in imports if node.module != own for alias in node.names}
            wrong += [f"{path}: {name}" for name in names & files]
    assert not wrong


def test_class_names_are_unique():
    homes = defaultdict(list)
    for path, node in CLASSES:
        homes[node.name].append(path)
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


def test_a_frozen_dataclass_is_configuration():
    """At most ten fields, and no arrays unless it is registered as a pytree: what is traced is a NamedTuple."""
    wrong = []
    for path, node in CLASSES:
        fields = [ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)]
        registered = any("register" in ast.unparse(each) for each in node.decorator_list)
        if (dataclass_options(node) or {}).get("frozen") == "True" and not registered:
            if len(fields) > 10 and node.name not in MANY_FIELDS:
                wrong.append(f"{path}: {node.name} has {len(fields)} fields")
            wrong += [
                f"{path}: {node.name} holds {each}"
                for each in fields
                if re.search(r"\bArray\b", each.partition("Callable")[0])
            ]
    assert not wrong


def test_every_room_lists_its_public_names():
    """That they exist is tested in test_reference.py."""
    rooms = {path: tree for path, tree in MODULES.items() if path.endswith("__init__.py")}
    assignments = {
        path: [
            ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
        ]
        for path, tree in rooms.items()
    }
    assert not [path for path, names in assignments.items() if "__all__" not in names]


def test_docstrings_are_read_by_the_reference():
    """Markdown has no ``::``, and each item of "Attributes:" or "Args:" names one thing."""
    wrong = []
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, Function | ast.ClassDef | ast.Module) else None
            wrong += [
                f"{path}: {line}" for line in re.findall(r"^.*(?<=\S)::$|^ +\w+(?:, \w+)+: .*$", text or "", re.M)
            ]
    assert not wrong


def test_no_file_is_called_utils():
    assert not [
        path for path in MODULES if Path(path).stem.strip("_") in ("utils", "util", "helpers", "misc", "common")
    ]
