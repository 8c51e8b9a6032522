"""Checkpoints that a release leaves for later ones: ``python -m tests.support.release tests/data/NAME.tar.xz``.

Made once, when a version is released, and never again: ``tests/house/test_release.py`` loads them with today's code.
Their contents are `leaves` below, and plain arrays in the same archive (``run.npz``, ``model.npz``, ``draft.npz``).
"""

import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxfed
import jaxspec
from jaxfed import checkpoint
from jaxspec.loading.store import save_model
from jaxspec.models.config import Attention, Block
from jaxspec.text.tokenizer import train_tokenizer

TEXT = "to be or not to be"
CONFIG = jaxspec.DecoderConfig(
    vocab_size=10,
    width=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_size=4,
    hidden=12,
    attention=Attention(window=6, windowed=(True, False), qkv_bias=True),
    block=Block(norms="around", activation="gelu"),
)


def leaves() -> dict[str, Any]:
    """Every kind of leaf and container that a checkpoint holds."""
    return {
        "jax": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 8,
        "short": jnp.arange(5, dtype=jnp.bfloat16),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
        "numpy": [np.arange(4), np.array([True, False]), np.array(1 + 2j), np.zeros((0, 3))],
        "scalar": np.float64(0.1),
        "python": [True, 3, 2.5, 2**80, "words", None],
        "empty": {"list": [], "dict": {}},
    }


def run(directory: Path, rounds: int) -> jaxfed.Server:
    """A federated run whose client rows are saved with its server."""
    samples = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 3, 2)

    def loss_fn(params, batch, key):
        return jaxfed.masked_mean((batch["x"] @ params["w"] - params["b"]) ** 2, batch["mask"]), ()

    algorithm = jaxfed.fedspeed(loss_fn, client_learning_rate=0.1)
    server = algorithm.init({"w": jnp.array([0.5, -0.25]), "b": jnp.float32(1.0)}, len(samples))
    clients = jaxfed.data.client_data([{"x": each} for each in samples])
    return jaxfed.simulate(
        algorithm,
        server,
        clients,
        rounds=rounds,
        batching=jaxfed.Epochs(1, 2),
        sampler=jaxfed.FixedSize(2),
        report=jaxfed.Report(progress=False),
        checkpoint=directory,
    )[0]


def models() -> dict[str, jaxspec.Model]:
    """A model with its tokenizer, and a draft with lookahead streams."""
    made = jaxspec.decoder(CONFIG, jax.random.key(3))
    text = jaxspec.Text.of(train_tokenizer([TEXT]), stop=(2,))
    plain = jaxspec.decoder(jaxspec.DecoderConfig(10, 8, 2, 2, 1, 4, 12), jax.random.key(4))
    return {"model": made._replace(text=text), "draft": jaxspec.streaming(plain, 2, start=1, rank=2)}


def named(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by name."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in pairs}


def main(archive: Path) -> None:
    """Writes everything into a new archive."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        with tarfile.open(archive, "x:xz") as file:
            for path in sorted(Path(folder).iterdir()):
                file.add(path, path.name, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same member without owner and time."""
    return member.replace(deep=False, uid=0, gid=0, uname="", gname="", mtime=0)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks an archive into a folder, and returns the folder."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder


def write(folder: Path) -> None:
    """Writes every checkpoint, and the arrays it must give, into a folder."""
    checkpoint.save(folder / "leaves", 1, leaves(), metadata={"made by": "jaxfed 0.1.0"}, kind="leaves")
    run(folder / "run", 2)
    np.savez_compressed(folder / "run.npz", **named(checkpoint.load(folder / "run")))
    for name, model in models().items():
        save_model(model, folder / name)
        np.savez_compressed(folder / f"{name}.npz", **named(model.params))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
