"""Programs compiled from shapes, one after the other: what each needs on one of its devices. Nothing is run."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from jaxspec.analysis.compiled import Counted, count
from jaxspec.devices.chips import Chip
from jaxspec.devices.processes import shapes_on


class CompiledProgram(NamedTuple):
    """A compiled program, on one device.

    Attributes:
        arguments: bytes that it reads, weights and cache among them.
        aliased: of these, what it updates in place.
        temporary: bytes that it needs besides.
        counted: what it moves and waits for.
        seconds: that its compilation took.
        outputs: bytes that it returns, what is updated in place among them.
    """

    arguments: int
    aliased: int
    temporary: int
    counted: Counted
    seconds: float
    outputs: int = 0

    @property
    def memory(self) -> int:
        """Bytes that a device holds while it runs."""
        return self.arguments + self.temporary + self.outputs - self.aliased

    def estimate(self, chip: Chip) -> float:
        """Return seconds of a run: the larger of bytes over bandwidth and, where known, cycles over clock."""
        cycles = self.counted.cycles / chip.clock if chip.clock else 0.0
        return max(self.counted.hbm_bytes / chip.bandwidth, cycles)


def compiled_program(program: Any, *arguments: Any) -> tuple[Any, CompiledProgram]:
    """Compile a jitted function for shapes with shardings; return those of its outputs, and what it needs."""
    start = time.perf_counter()
    lowered = program.lower(*arguments)
    made = lowered.compile()
    seconds = time.perf_counter() - start
    memory = made.memory_analysis()
    arguments_of, aliased, temporary, returned = (
        int(getattr(memory, f"{name}_size_in_bytes")) for name in ("argument", "alias", "temp", "output")
    )
    outputs = shapes_on(lowered.out_info, made.output_shardings)
    return outputs, CompiledProgram(arguments_of, aliased, temporary, count(made), seconds, returned)


class Compiling:
    """Compiles programs by name, and keeps what they need.

    Attributes:
        found: what each needs, in the order in which they were compiled.
    """

    def __init__(self, report: Callable[[str], None] = lambda name: None) -> None:
        self.found: dict[str, CompiledProgram] = {}
        self._report = report

    def __call__(self, name: str, program: Any, *arguments: Any) -> Any:
        """Compile a jitted function for shapes with shardings, and return those of its outputs.

        Raises:
            MemoryError: it does not fit into the devices' memory.
        """
        self._report(name)
        with _named(name):
            outputs, self.found[name] = compiled_program(program, *arguments)
        return outputs


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Convert the compiler's error of a program that does not fit."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = re.search(r"[^.\n]*exceed[^\n]*", str(error))
        raise MemoryError(
            f"expected a program {name} that fits into the memory of its devices, got: "
            f"{said[0].strip() if said else error}; use more devices, a smaller batch or cache, or eight bits"
        ) from error
