"""Quick compilation: most of these tests' time would otherwise go into optimising programs that run once."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without expensive optimisations, except in tests that ask for ``as_users_compile``."""
    jax.config.update("jax_disable_most_optimizations", "as_users_compile" not in request.fixturenames)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def as_users_compile() -> Iterator[None]:
    """The programs of this module's test are compiled anew, optimised."""
    jax.clear_caches()
    yield
    jax.clear_caches()
