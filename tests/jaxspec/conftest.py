"""What several files of tests read from disk."""

import pathlib

import pytest

from jaxspec import zoo
from tests.support.jaxspec import small


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a small pair, for commands."""
    folder = tmp_path_factory.mktemp("small")
    zoo.save(small.pair(), folder)
    return folder
