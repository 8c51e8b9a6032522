"""A count of the programs that this process has compiled."""

import jax

_COUNT = [0]


def compiled_programs() -> int:
    """Return the number of programs compiled since this module was imported."""
    return _COUNT[0]


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COUNT[0] += 1


jax.monitoring.register_event_duration_secs_listener(_count)
