"""Loads damaged files of models: ``python -m tests.support.jaxspec.fuzz COUNT KIND…``.

A process of its own, with bounded memory and time, so that a crash, a hang or too much memory ends only this process.
Every case is printed before it is loaded; the last line counts for each kind what loaded and what was refused, and
lists what broke.
"""

import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np

import jaxspec
from jaxfed import checkpoint
from jaxfed.checkpoint import record
from jaxspec import Text, zoo
from jaxspec.loading import load_huggingface, save_huggingface
from jaxspec.loading.llama2c import load_llama2c
from jaxspec.loading.store import load_model, save_model
from jaxspec.text.tokenizer import train_tokenizer

SENTENCEPIECE = Path(__file__).parents[2] / "data" / "stories260K" / "tok512.model"
#: Memory beyond what the process has before it begins, and seconds for one case.
MEMORY, SECONDS = 2**30, 60
#: What may stand in JSON instead of anything.
NUMBERS = -1, 0, 1.5, 2**31, 10**12, 10**30, float("inf"), float("nan")
VALUES = *NUMBERS, None, True, "", "x", "../x", [], [[]], {}, [-1]
DEEP = "[" * 100_000
LONG = '{"vocab_size": ' + "9" * 10_000 + "}"


def model():
    """A small Llama-like model with text."""
    small = jaxspec.decoder(jaxspec.DecoderConfig(10, 8, 2, 2, 1, 4, 12), jax.random.key(3))
    return small._replace(text=Text.of(train_tokenizer(["to be or not to be"]), stop=(2,)))


def published(folder):
    save_huggingface(model(), folder)
    more = {
        "tokenizer_config": {"bos_token": {"content": "t"}, "chat_template": [{"name": "default", "template": "a"}]}
    }
    more |= {"generation_config": {"eos_token_id": [1, 2]}, "special_tokens_map": {"pad_token": "o"}}
    for name, content in more.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def in_parts(folder):
    save_huggingface(model(), folder, shard_bytes=2000)


def pieces(folder):
    shutil.copyfile(SENTENCEPIECE, folder / "tokenizer.model")


def llama2c(folder):
    width, hidden, layers, heads, shared, vocab, length = header = [8, 12, 2, 2, 1, 10, 16]
    size = width // heads
    layer = 2 * width + width * size * (2 * heads + 2 * shared) + 3 * hidden * width
    count = vocab * width + layers * layer + width + length * size
    values = np.random.default_rng(0).normal(size=count).astype(np.float32)
    (folder / "model.bin").write_bytes(np.asarray(header, np.int32).tobytes() + values.tobytes())


def own(folder):
    save_model(jaxspec.streaming(model(), 2, start=1, rank=2), folder)


def pair(folder):
    one = model()
    streams = jaxspec.streaming(one, 2, start=1, rank=2)
    zoo.save(zoo.Pair(one, one, jaxspec.LogitLens(), 1, one.text.tokenizer, {}, streams), folder)


#: How each kind is written, and loaded.
KINDS = {
    "published": (published, load_huggingface),
    "in parts": (in_parts, load_huggingface),
    "pieces": (pieces, Text.read),
    "llama2c": (llama2c, lambda folder: load_llama2c(folder / "model.bin")),
    "own": (own, load_model),
    "pair": (pair, zoo.load),
}


def damaged_bytes(data, chance):
    """One bit flipped, an end cut off, or bytes put in."""
    at = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(min(len(data), 256))
    kind = chance.randrange(4)
    if kind == 0:
        return f"cut at {at}", data[:at]
    if kind == 1:
        return f"more at {at}", data[:at] + bytes(chance.randrange(256) for _ in range(9)) + data[at:]
    return f"flip at {at}", data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def paths(tree, path=()):
    """The paths of all nodes of a JSON tree below its root."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, child in pairs:
        yield (*path, name)
        yield from paths(child, (*path, name))


def damaged_tree(tree, chance):
    """A JSON tree with one node removed or replaced."""
    tree, where = copy.deepcopy(tree), chance.choice(list(paths(tree)))
    parent = tree
    for name in where[:-1]:
        parent = parent[name]
    value = chance.choice(VALUES)
    if chance.random() < 0.25:
        del parent[where[-1]]
        return f"without {where}", tree
    parent[where[-1]] = value
    return f"{value!r} as {where}", tree


def damaged_json(file, chance):
    """A JSON file with another tree; a manifest gets the digest that fits it, and a safetensors file its header."""
    if file.suffix == ".safetensors":
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        what, tree = damaged_tree(json.loads(data[8:end]), chance)
        header = json.dumps(tree).encode()
        return what, len(header).to_bytes(8, "little") + header + data[end:]
    tree = json.loads(file.read_text())
    if file.name == record.MANIFEST:
        what, body = damaged_tree(tree["manifest"], chance)
        return what, record.render(body).encode()
    what, tree = damaged_tree(tree, chance)
    return what, json.dumps(tree).encode()


def cases(folder, count, chance):
    """(what was done, file, its new content): a fixed list, then ``count`` at random for every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # All other files of a step have their digests in its manifest: see tests/long/test_faults.py.
    files = [file for file in files if file.name == record.MANIFEST] or files
    for file in files:
        for text in (b"", b"\x00" * 64, b"\xff" * 64, b"[]", b"null", DEEP.encode(), LONG.encode()):
            yield f"{text[:16]!r}…", file, text
        if file.suffix == ".safetensors":
            for length in (0, 2**31, 2**63, 2**64 - 1):
                yield f"header of {length}", file, length.to_bytes(8, "little") + file.read_bytes()[8:]
        if file.suffix == ".bin":
            header = np.frombuffer(file.read_bytes()[:28], np.int32)
            for index in range(7):
                for value in (0, -1, 1, 3, 2**23, -(2**31), 2**31 - 1, -header[index]):
                    changed = header.copy()
                    changed[index] = value
                    yield f"{value} as size {index}", file, changed.tobytes() + file.read_bytes()[28:]
    trees = [file for file in files if file.suffix in (".json", ".safetensors")]
    for number in range(count):
        for file in files:
            if file in trees and number % 3:
                what, content = damaged_json(file, chance)
            else:
                what, content = damaged_bytes(file.read_bytes(), chance) if file.stat().st_size else ("more", b"more")
            yield what, file, content


def outcome(load, folder, file):
    """Returns "loaded", "refused" (by an error that names file or folder), or what went wrong."""
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load(folder)
    except (ValueError, checkpoint.CheckpointError) as error:
        return "refused" if str(folder) in str(error) or file.name in str(error) else f"unnamed: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "loaded"


def limit_memory():
    """Limits this process to ``MEMORY`` more than it uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def counts(kind, count):
    """Counts of loaded and refused cases of a kind, and the cases that broke."""
    write, load = KINDS[kind]
    results = {"loaded": 0, "refused": 0, "broke": []}
    with tempfile.TemporaryDirectory() as directory:
        whole, damaged = Path(directory) / "whole", Path(directory) / "damaged"
        whole.mkdir()
        write(whole)
        load(whole)
        for what, file, content in cases(whole, count, random.Random(kind)):
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(whole, damaged)
            target = damaged / file.relative_to(whole)
            target.write_bytes(content)
            case = f"{kind}: {file.relative_to(whole)}: {what}"
            print(case, flush=True)
            result = outcome(load, damaged, file)
            if result in ("loaded", "refused"):
                results[result] += 1
            else:
                results["broke"].append(f"{case}: {result[:300]}")
    return results


if __name__ == "__main__":
    model()
    limit_memory()
    print(json.dumps({kind: counts(kind, int(sys.argv[1])) for kind in sys.argv[2:]}))
