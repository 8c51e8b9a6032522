"""The text of a compiled program (HLO): its computations, their instructions, and how arrays lie in memory."""

import math
import re
from typing import NamedTuple

#: Bytes of an element, where they are not its name's number over eight.
BYTES = {"pred": 1.0, "token": 0.0, "opaque": 0.0}
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
NAME = re.compile(r"%([\w.\-]+)")


class HloArray(NamedTuple):
    """An array of a compiled program.

    Attributes:
        dtype: of its elements, as HLO writes it.
        sizes: of its axes.
        order: axes, the one that is contiguous in memory first.
        tile: to multiples of what the last axes are padded, the contiguous one last.
        space: 0: the device's main memory; others are on the chip.
    """

    dtype: str
    sizes: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes that it takes, padding included."""
        sizes = list(self.sizes)
        for axis, multiple in zip(self.order, reversed(self.tile), strict=False):
            sizes[axis] = -(-sizes[axis] // multiple) * multiple
        digits = re.search(r"\d+", self.dtype)
        size = BYTES[self.dtype] if digits is None else int(digits[0]) / 8
        return math.ceil(math.prod(sizes) * size)


class HloInstruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
        name: unique among those of its computation.
        op: what it does.
        arrays: that it returns, a tuple's in order.
        operands: names of instructions; of a parameter its number, of a constant its value.
        attributes: the rest of the line.
        is_root: whether the computation returns what it does.
    """

    name: str
    op: str
    arrays: tuple[HloArray, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    def called(self, *kinds: str) -> list[str]:
        """Return names of computations that it calls as ``kinds``: calls, body, condition, to_apply, branches."""
        found: list[str] = []
        for kind in kinds:
            one = re.search(rf"\b{kind}=%([\w.\-]+)", self.attributes)
            found += [one[1]] if one else []
        if "branches" in kinds:
            some = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
            found += NAME.findall(some[1]) if some else self.called("true_computation", "false_computation")
        return found


class HloProgram(NamedTuple):
    """A compiled program.

    Attributes:
        computations: instructions by name, of each.
        entry: name of the computation that is run.
    """

    computations: dict[str, dict[str, HloInstruction]]
    entry: str

    def parameter(self, computation: str, number: int) -> HloInstruction:
        """Return a computation's parameter."""
        found = self.computations[computation].values()
        return next(each for each in found if each.op == "parameter" and int(each.operands[0]) == number)

    def root(self, computation: str) -> HloInstruction:
        """Return what a computation returns."""
        return next(each for each in self.computations[computation].values() if each.is_root)


def parsed(text: str) -> HloProgram:
    """Read a program, as ``jax.stages.Compiled.as_text`` writes it.

    Raises:
        ValueError: no computation is marked as the entry.
    """
    computations: dict[str, dict[str, HloInstruction]] = {}
    entry = name = None
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            name = found[2]
            entry, computations[name] = (name if found[1] else entry), {}
        elif line.startswith("}"):
            name = None
        elif name is not None and (instruction := _instruction(line.strip())):
            computations[name][instruction.name] = instruction
    if entry is None:
        raise ValueError("expected the text of a compiled program with an ENTRY computation, got none")
    return HloProgram(computations, entry)


def arrays_of(text: str) -> tuple[HloArray, ...]:
    """Read the arrays of a type."""
    return tuple(_array(*found) for found in ARRAY.findall(text))


def _array(dtype: str, sizes: str, order: str, layout: str) -> HloArray:
    tile, space = re.match(r"T\(([\d,]+)\)", layout), re.search(r"S\((\d+)\)", layout)
    numbers = lambda written: tuple(int(each) for each in written.split(",") if each)  # noqa: E731
    return HloArray(
        dtype, numbers(sizes), numbers(order), numbers(tile[1]) if tile else (), int(space[1]) if space else 0
    )


def _instruction(line: str) -> HloInstruction | None:
    found = INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, kind, op, rest = found.groups()
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += (rest[end] in "({[") - (rest[end] in ")}]")
        end += 1
    inside = rest[: end - 1]
    operands = (inside,) if op in ("parameter", "constant") else tuple(NAME.findall(inside))
    return HloInstruction(name, op, arrays_of(kind), operands, rest[end:], bool(root))
