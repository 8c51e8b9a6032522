"""What a compiled program moves and waits for, counted in its HLO: bytes of main memory, collectives, copies, loops.

Nothing is run: a program that was compiled for another device, a TPU's topology say, is counted as well. For most
devices ``cost_analysis`` counts bytes of fast memory too, and loops once.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from jaxspec.analysis._hlo import HloArray, HloInstruction, HloProgram, parsed

RAGGED = "ragged-all-to-all"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", RAGGED)
#: Leaves a slice of TPUs for another, through the hosts.
SEND = "send"
SLICES = ("dynamic-slice", "slice", "gather")
VIEWS = ("bitcast", "reshape")
#: Updates in place, and which operand is written.
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
#: Instructions that move nothing themselves.
FREE = frozenset(
    ("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while", "conditional", "call", "after-all")
    + ("partition-id", "replica-id", "opt-barrier", "iota")
)


class Collective(NamedTuple):
    """One communication between devices: its kind, bytes of its result on a device, and how often it is run."""

    kind: str
    bytes: int
    times: int = 1


class Copy(NamedTuple):
    """An array that is copied or transposed on its own, its bytes, and how often."""

    array: str
    bytes: int
    times: int = 1


class Counted(NamedTuple):
    """What a program does on one device.

    Attributes:
        hbm_bytes: read from and written to main memory.
        cycles: the compiler's estimate, summed over instructions; 0 where it has none. No waiting is in it.
        collectives: in the order of the program.
        copies: copies and transposes in main memory or between it and itself; a prefetch is none.
        loops: while loops.
        matrix_vector_bytes: of weights that are multiplied outside the matrix unit (``multiply_reduce`` fusions).
    """

    hbm_bytes: int
    cycles: int
    collectives: tuple[Collective, ...]
    copies: tuple[Copy, ...]
    loops: int
    matrix_vector_bytes: int

    def copied(self, least: int = 1 << 20) -> list[Copy]:
        """Return copies of at least so many bytes."""
        return [copy for copy in self.copies if copy.bytes >= least]


def count(compiled: Any, branch: Callable[[Iterable[int]], int] = max) -> Counted:
    """Count what a program moves.

    An instruction reads its operands and writes its result where they lie in main memory; a slice reads its result
    alone, an update in place writes the update alone, a fusion reads of an operand what is read inside. Loops count as
    often as they run: as their condition compares with a constant.

    Args:
        compiled: a ``jax.stages.Compiled``, or its text.
        branch: which branch of a conditional counts: ``max`` or ``min`` of their sums.

    Raises:
        ValueError: not the text of a compiled program.
    """
    program = parsed(compiled if isinstance(compiled, str) else compiled.as_text())
    traffic = _Traffic(program)
    total = lambda price: _total(program, program.entry, price, branch)  # noqa: E731
    run = list(_executed(program, program.entry))
    products = [(place, each) for place, each, _ in run if "multiply_reduce" in each.name]
    return Counted(
        total(traffic.moved),
        total(lambda place, each: _cycles(each)),
        tuple(found for place, each, times in run for found in _collectives(program, place, each, times)),
        tuple(found for place, each, times in run for found in _copies(each, times)),
        sum(each.op == "while" for _, each, _ in run),
        sum(traffic.moved(*product) for product in products),
    )


def _total(
    program: HloProgram,
    computation: str,
    price: Callable[[str, HloInstruction], int],
    branch: Callable[[Iterable[int]], int],
) -> int:
    """Sum the prices of all instructions that are run: of loops times their trips, of conditionals one branch."""

    def whole(each: HloInstruction) -> int:
        below = lambda name: _total(program, name, price, branch)  # noqa: E731
        if each.op == "while":
            return trips(program, each) * below(each.called("body")[0])
        if each.op == "conditional":
            return branch([below(name) for name in each.called("branches")])
        if each.op == "call":
            return below(each.called("to_apply")[0])
        return price(computation, each)

    return sum(whole(each) for each in program.computations[computation].values())


def _executed(program: HloProgram, computation: str, times: int = 1) -> Iterator[tuple[str, HloInstruction, int]]:
    """Yield all instructions that may be run, with their computation and how often; all branches."""
    for each in program.computations[computation].values():
        yield computation, each, times
        often = times * trips(program, each) if each.op == "while" else times
        kinds = {"while": ("body",), "conditional": ("branches",), "call": ("to_apply",)}.get(each.op, ())
        for name in each.called(*kinds):
            yield from _executed(program, name, often)


def trips(program: HloProgram, loop: HloInstruction) -> int:
    """Return how often a loop runs: what the compiler says, else the constant in its condition, else once."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]].values()
    found = [each.operands[0] for each in condition if each.op == "constant" and each.arrays[0].dtype == "s32"]
    return max([int(value) for value in found if value.lstrip("-").isdigit()], default=1)


def _cycles(each: HloInstruction) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', each.attributes)
    cycles = int(found[1]) if found else 0
    return cycles if cycles < 1 << 63 else 0  # all bits set: not known


def _collectives(program: HloProgram, computation: str, each: HloInstruction, times: int) -> Iterator[Collective]:
    """Yield an instruction's communication; a fusion may have one inside."""
    kind = next((kind for kind in (*COLLECTIVES, SEND) if each.op in (kind, f"{kind}-start")), None)
    if kind is not None:
        yield Collective(kind, _received(program, computation, each), times)
    for name in each.called("calls"):
        for inner in program.computations[name].values():
            for found in _collectives(program, name, inner, times):
                scattered = "reduce-scatter" if "scatter" in each.name else found.kind
                yield found._replace(kind=scattered, bytes=_all(each.arrays))


def _received(program: HloProgram, computation: str, each: HloInstruction) -> int:
    """Return the bytes of a communication's result; one in the background names its operands first.

    Of an exchange of rows the smaller of both arrays: the other keeps rows that stay where they are.
    """
    if each.op == SEND:
        return each.arrays[0].bytes
    if each.op == RAGGED:
        source = program.computations[computation].get(each.operands[0], each)
        return min(_all(each.arrays), _all(source.arrays))
    count, later = len(each.operands), each.op.endswith("-start") and each.op != "all-reduce-start"
    return _all(each.arrays[count : 2 * count] if later else each.arrays)


def _copies(each: HloInstruction, times: int) -> Iterator[Copy]:
    named = each.op == "fusion" and re.match(r"copy|transpose", each.name) is not None
    both = each.arrays[:2] if each.op == "copy-start" else each.arrays[:1]
    if (each.op in ("copy", "transpose", "copy-start") or named) and all(array.space == 0 for array in both):
        yield Copy(f"{both[0].dtype}{list(both[0].sizes)}", both[0].bytes, times)


class _Traffic:
    """Bytes of main memory that instructions read and write."""

    def __init__(self, program: HloProgram) -> None:
        self.program = program
        self._read: dict[tuple[str, str], int] = {}

    @cached_property
    def _uses(self) -> dict[str, dict[str, list[tuple[HloInstruction, int]]]]:
        """The instructions that read each value, and as which operand, by computation."""
        uses: dict[str, dict[str, list[tuple[HloInstruction, int]]]] = {}
        for computation, instructions in self.program.computations.items():
            for each in instructions.values():
                for place, operand in enumerate(() if each.op in ("parameter", "constant") else each.operands):
                    uses.setdefault(computation, {}).setdefault(operand, []).append((each, place))
        return uses

    def moved(self, computation: str, each: HloInstruction) -> int:
        """Bytes that an instruction reads from and writes to main memory."""
        if each.op in FREE or each.op.endswith("-done"):
            return 0
        if each.op == RAGGED:  # rows are read and written
            return 2 * _received(self.program, computation, each)
        if each.op == SEND:
            return _received(self.program, computation, each)
        if each.op.endswith("-start") and each.op.removesuffix("-start") not in COLLECTIVES:
            return 0 if self._prefetched_before(computation, each) else self._started(each)
        return sum(self._reads(computation, each, place) for place in range(len(each.operands))) + self._writes(
            computation, each
        )

    def _prefetched_before(self, computation: str, each: HloInstruction) -> bool:
        """Return whether the run before has fetched an array, at its end, as this one does for the next."""
        others = self._uses[computation][each.operands[0]]
        again = any(other.op == each.op and other.name != each.name for other, _ in others)
        return "cross_program_prefetch_index" in each.attributes and again

    def _started(self, each: HloInstruction) -> int:
        """Bytes of a transfer in the background; of its arrays a copy names the destination first, others last."""
        arrays = [array for array in each.arrays if array.sizes]
        inputs = 1 if each.op == "copy-start" else len(each.operands)
        new, old = (arrays[:1], arrays[1:2]) if each.op == "copy-start" else (arrays[inputs:], arrays[:inputs])
        written = sum(array.bytes for array in new if array.space == 0)
        return written + (sum(array.bytes for array in new) if any(array.space == 0 for array in old) else 0)

    def _reads(self, computation: str, each: HloInstruction, place: int) -> int:
        source = self.program.computations[computation].get(each.operands[place])
        if source is None or source.op == "constant":
            return 0
        return min(self.read_by(computation, each, place), _in_memory(source.arrays))

    def read_by(self, computation: str, user: HloInstruction, place: int) -> int:
        """Bytes that an instruction reads of its operand ``place``."""
        if user.op in SLICES and place == 0:
            return _all(user.arrays)
        if user.op in UPDATES and place == 0:
            return 0
        if user.op == "fusion":
            inside = user.called("calls")[0]
            return self.read(inside, self.program.parameter(inside, place).name)
        if user.op in VIEWS:
            return self.read(computation, user.name)
        return _all(self.program.computations[computation][user.operands[place]].arrays)

    def read(self, computation: str, name: str) -> int:
        """Bytes that a computation reads of one of its values."""
        key = computation, name
        if key not in self._read:
            value = self.program.computations[computation][name]
            users = self._uses.get(computation, {}).get(name, [])
            whole = _all(value.arrays)
            parts = [0 if user.op == "tuple" else self.read_by(computation, user, place) for user, place in users]
            self._read[key] = whole if value.is_root else min(whole, sum(parts))
        return self._read[key]

    def _writes(self, computation: str, each: HloInstruction) -> int:
        if each.op != "fusion":
            return self.written(computation, each) if _in_memory(each.arrays) else 0
        inside = each.called("calls")[0]
        root = self.program.root(inside)
        if root.op != "tuple":
            return self.written(inside, root) if _in_memory(each.arrays) else 0
        parts = zip(each.arrays, root.operands, strict=False)
        found = self.program.computations[inside]
        return sum(self.written(inside, found[name]) for array, name in parts if array.space == 0)

    def written(self, computation: str, each: HloInstruction) -> int:
        """Bytes that a value's producer writes: an update alone where its operand is updated in place."""
        values = self.program.computations.get(computation, {})
        if each.op in UPDATES:
            return _all(values.get(each.operands[UPDATES[each.op]], each).arrays)
        if each.op in VIEWS and each.operands[0] in values:
            return self.written(computation, values[each.operands[0]])
        if each.op == "fusion":
            return self.written(each.called("calls")[0], self.program.root(each.called("calls")[0]))
        return _all(each.arrays)


def _all(arrays: Iterable[HloArray]) -> int:
    return sum(array.bytes for array in arrays)


def _in_memory(arrays: Iterable[HloArray]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)
