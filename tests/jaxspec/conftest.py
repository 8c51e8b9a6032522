"""Quick compilation: most of these tests' time would otherwise go into optimising programs that run once."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without expensive optimisations, except in tests marked ``as_users``."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("as_users") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
