"""Every Python block of the README runs as it stands."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_shows_both_packages():
    """One block for each package, of about twenty lines."""
    assert [("import jaxfed" in block or ", jaxfed" in block, "import jaxspec" in block) for block in BLOCKS] == [
        (True, False),
        (False, True),
    ]
    assert max(block.count("\n") for block in BLOCKS) <= 25


@pytest.mark.parametrize("block", BLOCKS, ids=["jaxfed", "jaxspec"])
def test_block_runs(block: str, tmp_path: pathlib.Path):
    """Typed into a fresh interpreter, the block ends without an error and prints something."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
