"""The checkpoint layer: what is saved comes back bit by bit, and what is wrong is named before anything is loaded."""

import dataclasses
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfed import checkpoint
from jaxfed.checkpoint import record

ROOT = Path(__file__).parents[3]


class Moments(NamedTuple):
    mean: Any
    nothing: tuple[()] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: Any
    moments: Moments
    name: str = dataclasses.field(metadata={"static": True}, default="draft")


def params(scale: float = 1.0) -> dict[str, Any]:
    return {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) * scale, "b": jnp.ones(3, jnp.bfloat16)}


def everything() -> dict[str, Any]:
    return {
        "state": State(params(), Moments({"w": jnp.zeros((2, 3), jnp.int8)})),
        "keys": {"one": jax.random.key(7), "many": jax.random.split(jax.random.key(1, impl="rbg"), (2, 2))},
        "python": (True, 3, 2.5, 2**80, float("inf"), "text"),
        "numpy": [np.arange(4), np.float64(0.1), np.bool_(True), np.array(1 + 2j), np.ones(2, jnp.bfloat16)],
        "odd/../name é": jnp.array(1, jnp.uint16),
        "empty": (None, [], {}, (), jnp.zeros((0, 3)), np.zeros((2, 0)), jax.random.split(jax.random.key(1), 0)),
        3: jnp.array([True, False]),
    }


def bits(x: Any) -> Any:
    """Everything about a leaf that a round trip must keep."""
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(x)), x.shape, np.asarray(jax.random.key_data(x)).tobytes()
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        kind = "jax" if isinstance(x, jax.Array) else type(x).__name__
        return kind, str(x.dtype), x.shape, np.asarray(x).tobytes()
    return type(x).__name__, x


def assert_same(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert list(map(bits, jax.tree.leaves(got))) == list(map(bits, jax.tree.leaves(expected)))


def folder(directory: Path, step: int) -> Path:
    return directory / f"{step:08d}"


def files(directory: Path, step: int) -> list[Path]:
    return sorted(path for path in folder(directory, step).rglob("*") if path.is_file())


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << (offset % 8)
    path.write_bytes(data)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"params": params(step), "round": step}, metadata={"seed": step}, kind="run")
    return tmp_path


# --- round trips ---


def test_every_kind_of_leaf_and_container_comes_back(tmp_path: Path) -> None:
    tree = {key: value for key, value in everything().items() if key != 3}
    checkpoint.save(tmp_path, 0, tree)
    assert_same(checkpoint.load(tmp_path, like=tree), tree)


def test_without_like_the_tree_comes_back_in_dicts_and_lists(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 0, {key: value for key, value in everything().items() if key != 3})
    tree = checkpoint.load(tmp_path)
    expected = everything()
    assert_same(
        tree["state"], {"params": params(), "moments": {"mean": {"w": jnp.zeros((2, 3), jnp.int8)}, "nothing": []}}
    )
    assert_same(tree["python"], list(expected["python"]))
    assert_same(tree["numpy"], expected["numpy"])
    assert_same(tree["keys"], expected["keys"])
    assert_same(tree["empty"], [None, [], {}, [], *expected["empty"][4:]])


@pytest.mark.parametrize("tree", [{}, None, (), 3, np.float32(2), jnp.arange(3)], ids=str)
def test_trees_without_names_come_back(tmp_path: Path, tree: Any) -> None:
    checkpoint.save(tmp_path, 0, tree)
    assert_same(checkpoint.load(tmp_path, like=tree), tree)
    assert_same(checkpoint.load(tmp_path), [] if isinstance(tree, tuple) else tree)


def test_integer_keys_and_abstract_likes_are_accepted(tmp_path: Path) -> None:
    tree = {5: params(), 7: {"key": jax.random.key(3), "count": jnp.array(2)}}
    checkpoint.save(tmp_path, 0, tree)
    assert_same(checkpoint.load(tmp_path, like=jax.eval_shape(lambda: tree)), tree)
    assert_same(checkpoint.load(tmp_path), tree)


def test_like_determines_whether_numpy_or_jax_is_returned(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 0, {"a": jnp.ones(3), "b": np.zeros(2, np.float32)})
    tree = checkpoint.load(tmp_path, like={"a": np.empty(3, np.float32), "b": jnp.ones(2)})
    assert isinstance(tree["a"], np.ndarray)
    assert isinstance(tree["b"], jax.Array)


def test_uncommitted_arrays_stay_uncommitted_and_committed_ones_where_they_were(tmp_path: Path) -> None:
    tree = {"free": jnp.ones(3), "bound": jax.device_put(jnp.ones(3), jax.devices()[5])}
    checkpoint.save(tmp_path, 0, tree)
    back = checkpoint.load(tmp_path, like=tree)
    assert not back["free"].committed
    assert back["bound"].committed
    assert back["bound"].sharding == tree["bound"].sharding


def test_the_manifest_describes_what_was_saved(saved: Path) -> None:
    made = checkpoint.manifest(saved)
    assert (made.schema, made.kind, made.step, made.metadata) == (checkpoint.SCHEMA, "run", 2, {"seed": 2})
    described = {leaf.path: (leaf.dtype, leaf.shape) for leaf in made.tree}
    assert described == {
        ("params", "b"): ("bfloat16", (3,)),
        ("params", "w"): ("float32", (2, 3)),
        ("round",): ("int", None),
    }
    on_disk = {path.relative_to(folder(saved, 2)).as_posix(): path.stat().st_size for path in files(saved, 2)}
    assert on_disk.pop("manifest.json") > 0
    assert {name: file["size"] for name, file in made.files.items()} == on_disk
    assert str(saved) not in (folder(saved, 2) / "manifest.json").read_text()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    checkpoint.save(tmp_path, 0, params())
    checkpoint.load(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")] == []


# --- writers ---


def test_buffers_may_be_donated_or_overwritten_after_an_asynchronous_save(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with checkpoint.Writer(tmp_path, keep=None) as writer:
        for step in range(5):
            tree = {"jax": jnp.full((300, 1000), float(step)), "numpy": np.full((300, 1000), float(step))}
            writer.save(step, tree)
            tree["numpy"][:] = -1.0
            overwrite(overwrite(tree["jax"])).block_until_ready()
    for step in range(5):
        tree = checkpoint.load(tmp_path, step=step)
        assert (np.asarray(tree["jax"]) == step).all()
        assert (tree["numpy"] == step).all()


def test_a_save_returns_before_the_step_is_complete(tmp_path: Path) -> None:
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(4, {"w": np.random.default_rng(0).normal(size=(1000, 1000))})
        assert checkpoint.steps(tmp_path) == []
        writer.wait()
        assert checkpoint.latest(tmp_path) == 4


def test_only_the_last_steps_are_kept(tmp_path: Path) -> None:
    with checkpoint.Writer(tmp_path, keep=2) as writer:
        for step in (10, 20, 30, 40):
            writer.save(step, params())
    assert checkpoint.steps(tmp_path) == [30, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000030", "00000040"]
    checkpoint.save(tmp_path, 50, params())
    assert checkpoint.steps(tmp_path) == [30, 40, 50]


def test_half_written_steps_older_than_the_newest_complete_one_are_deleted(saved: Path) -> None:
    (folder(saved, 1) / "manifest.json").unlink()
    (saved / "00000007").mkdir()
    checkpoint.save(saved, 3, params())
    assert sorted(path.name for path in saved.iterdir()) == ["00000002", "00000003", "00000007"]
    assert checkpoint.load(saved, step=2)["round"] == 2


def test_a_second_writer_of_a_directory_is_refused(saved: Path) -> None:
    other = f"from jaxfed import checkpoint; checkpoint.Writer({str(saved)!r})"
    with checkpoint.Writer(saved):
        with pytest.raises(checkpoint.CheckpointError, match="expected .* without a writer, got one at work; close it"):
            checkpoint.Writer(saved)
        assert "without a writer, got one at work" in run(other, check=False).stderr
        checkpoint.Writer(saved / "below").close()
    checkpoint.save(saved, 3, {"round": 3})
    forgotten = checkpoint.Writer(saved)
    del forgotten
    gc.collect()
    checkpoint.Writer(saved).close()


def test_a_step_that_is_not_the_newest_survives_its_own_retention(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, params())
    checkpoint.save(tmp_path, 15, params(), keep=1)
    assert checkpoint.steps(tmp_path) == [15, 20, 30]


def test_metadata_is_taken_at_the_time_of_the_save(tmp_path: Path) -> None:
    metadata = {"losses": [1.0]}
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, params(), metadata)
        metadata["losses"].append(2.0)
    assert checkpoint.manifest(tmp_path).metadata == {"losses": [1.0]}


def test_an_error_in_the_background_is_raised_once_by_the_next_call(tmp_path: Path) -> None:
    script = f"""
        import resource, signal
        import numpy as np
        from jaxfed import checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        tree = {{"w": np.random.default_rng(0).normal(size=40_000)}}
        writer = checkpoint.Writer({str(tmp_path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        writer.save(1, tree)
        try:
            writer.wait()
        except checkpoint.CheckpointError as error:
            print("raised", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("then", checkpoint.steps({str(tmp_path)!r}))
        writer.save(1, tree)
        writer.close()
        print("later", checkpoint.steps({str(tmp_path)!r}))
    """
    out = run(script).stdout
    assert re.search(r"raised expected to complete the last save, got .*; free space", out, re.DOTALL)
    assert "then []" in out
    assert "later [1]" in out


# --- other placements, parts ---


def mesh(*shape: int) -> Mesh:
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), ("data", "model")[: len(shape)])


def test_a_tree_moves_to_another_mesh(tmp_path: Path) -> None:
    rows = NamedSharding(mesh(8), PartitionSpec("data"))
    columns = NamedSharding(mesh(2, 4), PartitionSpec("data", "model"))
    tree = {"w": jax.device_put(jnp.arange(64.0).reshape(8, 8), rows), "key": jax.random.key(1), "n": 3}
    checkpoint.save(tmp_path, 0, tree)
    moved = checkpoint.load(tmp_path, like=tree, shardings={"w": columns, "key": mesh_all(mesh(8)), "n": columns})
    assert moved["w"].sharding == columns
    assert_same(moved, tree)
    assert checkpoint.load(tmp_path, like=tree)["w"].sharding == rows
    everywhere = checkpoint.load(tmp_path, shardings=mesh_all(mesh(2, 2)))
    assert everywhere["w"].sharding == everywhere["key"].sharding == mesh_all(mesh(2, 2))
    assert_same(everywhere, tree)


def mesh_all(devices: Mesh) -> NamedSharding:
    return NamedSharding(devices, PartitionSpec())


def test_abstract_likes_carry_their_shardings(tmp_path: Path) -> None:
    where = NamedSharding(mesh(4), PartitionSpec("data"))
    checkpoint.save(tmp_path, 0, {"w": jnp.arange(8.0)})
    tree = checkpoint.load(tmp_path, like={"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=where)})
    assert tree["w"].sharding == where


def test_shardings_that_do_not_fit_are_refused(saved: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="(?s)expected shardings that fit .* got .*; pass"):
        checkpoint.load(saved, shardings={"parameters": mesh_all(mesh(2))})
    with pytest.raises(checkpoint.CheckpointError, match="(?s)expected shardings that fit .* got .*; pass"):
        checkpoint.load(saved, shardings=NamedSharding(mesh(8), PartitionSpec("data")))
    with pytest.raises(checkpoint.CheckpointError, match="(?s)expected shardings that fit .* got .*; pass"):
        checkpoint.load(saved, shardings=PartitionSpec("data"))


def test_a_part_is_loaded_without_the_files_of_the_rest(tmp_path: Path) -> None:
    tree = {"params": {"layers": [params(1), params(2)]}, "params.other": jnp.ones(2), "moments": params()}
    checkpoint.save(tmp_path, 0, tree)
    for path in (folder(tmp_path, 0) / "arrays").glob("*moments*"):
        shutil.rmtree(path)
    assert_same(checkpoint.load(tmp_path, like=tree["params"], part="params"), tree["params"])
    assert_same(checkpoint.load(tmp_path, part="params.layers.1"), params(2))
    assert_same(checkpoint.load(tmp_path, part="params.layers.1.w"), params(2)["w"])
    with pytest.raises(checkpoint.DamagedError, match="moments"):
        checkpoint.load(tmp_path)


def test_the_files_of_a_part_are_verified(saved: Path) -> None:
    flip(next(path for path in files(saved, 2) if path.parent.name.endswith("params.w")), 3)
    assert checkpoint.load(saved, part="round") == 2
    with pytest.raises(checkpoint.DamagedError, match=r"(?s)params\.w/.*the last good step is 1"):
        checkpoint.load(saved, part="params")


def test_a_part_that_is_not_there_is_named(saved: Path) -> None:
    with pytest.raises(
        checkpoint.MismatchError, match=r"expected .* one of \['params', 'round'\], got 'moments'; pass"
    ):
        checkpoint.load(saved, part="moments")


# --- another structure, shape, dtype ---


def test_every_difference_is_named_before_any_file_is_read(saved: Path) -> None:
    shutil.rmtree(folder(saved, 2) / "arrays")
    like = {"params": {"w": jnp.ones((3, 2)), "b": jnp.ones(3), "more": jnp.ones(1)}, "key": jax.random.key(0)}
    with pytest.raises(checkpoint.MismatchError) as raised:
        checkpoint.load(saved, like=like)
    for line in (
        "params.w: expected float32[3,2], got float32[2,3]",
        "params.b: expected float32[3], got bfloat16[3]",
        "params.more: expected float32[1], got nothing",
        "key: expected key<fry>[], got nothing",
        "round: expected nothing, got int",
        "pass a `like` of what was saved",
    ):
        assert line in str(raised.value)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": None, "b": {}, "k": jax.random.key(0, impl="rbg")}, "k: expected key<rbg>[], got key<fry>[]"),
        ({"a": (), "b": {}, "k": jax.random.key(0)}, "a: expected empty tuple, got None"),
        ({"a": None, "b": {"c": 1}, "k": jax.random.key(0)}, "b.c: expected int, got nothing"),
        ({"a": None, "b": {}, "k": jnp.zeros(2, jnp.uint32)}, "k: expected uint32[2], got key<fry>[]"),
        ([None, {}, jax.random.key(0)], "0: expected None, got nothing"),
    ],
    ids=["key", "empty", "branch", "raw key", "list"],
)
def test_differences_that_no_array_shows_are_named(tmp_path: Path, like: Any, message: str) -> None:
    checkpoint.save(tmp_path, 0, {"a": None, "b": {}, "k": jax.random.key(0)})
    with pytest.raises(checkpoint.MismatchError, match=re.escape(message)):
        checkpoint.load(tmp_path, like=like)


def test_64_bits_are_not_lost_silently(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        checkpoint.save(tmp_path, 0, {"w": jnp.ones(2, jnp.float64)})
        assert checkpoint.load(tmp_path)["w"].dtype == np.float64
    with pytest.raises(checkpoint.MismatchError, match="w: expected float64.* switch jax_enable_x64 on"):
        checkpoint.load(tmp_path)
    assert checkpoint.load(tmp_path, like={"w": np.ones(2)})["w"].dtype == np.float64


# --- damage ---


def test_a_flipped_bit_in_any_file_is_named(saved: Path) -> None:
    for path in files(saved, 2):
        name, data = path.relative_to(folder(saved, 2)).as_posix(), path.read_bytes()
        for offset in sorted({0, len(data) // 2, len(data) - 1}) if data else []:
            flip(path, offset)
            with pytest.raises(checkpoint.DamagedError) as raised:
                checkpoint.load(saved)
            assert raised.value.file == name
            assert re.search(rf"{re.escape(name)}: expected .*, got ", str(raised.value))
            assert "the last good step is 1: load it with step=1" in str(raised.value)
            path.write_bytes(data)
    assert checkpoint.load(saved)["round"] == 2


def test_any_flipped_bit_of_the_manifest_is_detected(saved: Path) -> None:
    path = folder(saved, 2) / "manifest.json"
    data = path.read_bytes()
    for offset in range(0, len(data), 13):
        flip(path, offset)
        with pytest.raises(checkpoint.DamagedError, match=r"manifest\.json"):
            checkpoint.manifest(saved)
        path.write_bytes(data)


@pytest.mark.parametrize("damage", ["truncate", "remove", "link", "add"])
def test_truncated_removed_linked_and_extra_files_are_named(saved: Path, damage: str) -> None:
    path = next(path for path in files(saved, 2) if path.parent.name.endswith("params.w") and path.name[0] != ".")
    name, size = path.relative_to(folder(saved, 2)).as_posix(), path.stat().st_size
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
        message = rf"{re.escape(name)}: expected .*{size},.* got .*{size - 1},"
    elif damage == "remove":
        path.unlink()
        message = rf"{re.escape(name)}: expected .*{size},.* got no such file"
    elif damage == "link":
        path.rename(saved / "elsewhere")
        path.symlink_to(saved / "elsewhere")
        message = rf"{re.escape(name)}: expected .*{size},.* got .*link.*elsewhere"
    else:
        (path.parent / "extra").write_bytes(b"1")
        message = r"extra: expected no such file, got .*1,"
    for check in (checkpoint.load, checkpoint.verify):
        with pytest.raises(checkpoint.DamagedError, match=message):
            check(saved)
    checkpoint.verify(saved, 1)


def test_without_a_good_step_the_error_states_it(saved: Path) -> None:
    for step in (1, 2):
        files(saved, step)[0].unlink()
    with pytest.raises(checkpoint.DamagedError, match="no older step is good"):
        checkpoint.load(saved)


def test_the_older_step_named_after_damage_loads(saved: Path) -> None:
    files(saved, 2)[0].unlink()
    with pytest.raises(checkpoint.DamagedError, match="step=1"):
        checkpoint.load(saved)
    assert checkpoint.load(saved, step=1)["round"] == 1


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "arrays/../../x"])
@pytest.mark.parametrize("section", ["files", "tree"])
def test_paths_that_leave_the_step_are_refused(saved: Path, name: str, section: str) -> None:
    def edit(body: dict[str, Any]) -> None:
        if section == "files":
            body["files"][name] = {"size": 1, "sha256": "0"}
        else:
            body["tree"][0]["array"] = name

    rewrite(saved, edit)
    with pytest.raises(checkpoint.DamagedError, match=f"{re.escape(name)}.*leaves the folder"):
        checkpoint.load(saved)


@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_what_links_lead_to_is_never_read(saved: Path, what: str) -> None:
    """A forged manifest does not list the link, and its digest fits."""
    array = next(path for path in (folder(saved, 2) / "arrays").iterdir() if path.name.endswith("params.w"))
    victim = array if what == "a folder" else next(path for path in array.iterdir() if not path.name.startswith("."))
    name = victim.relative_to(folder(saved, 2)).as_posix()
    victim.rename(saved / "elsewhere")
    victim.symlink_to(saved / "elsewhere")

    def forget(body: dict[str, Any]) -> None:
        body["files"] = {path: file for path, file in body["files"].items() if not path.startswith(name)}

    rewrite(saved, forget)
    with pytest.raises(checkpoint.DamagedError, match=rf"{re.escape(name)}: expected no such file, got .*link"):
        checkpoint.load(saved)
    rewrite(saved, lambda body: body["files"].update({name: {"link": str(saved / "elsewhere")}}))
    with pytest.raises(checkpoint.DamagedError, match="a link, .* as a file of the step"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**9, 10**9], "array": None},
        {"shape": ["2", 3]},
        {"shape": None},
        {"path": None},
        {"path": [["w"]]},
        {"form": "pickle"},
        {"array": ""},
        {"array": 3},
        {"dtype": 7},
    ],
    ids=str,
)
def test_leaves_that_cannot_be_are_refused_before_memory_is_taken(saved: Path, change: dict[str, Any]) -> None:
    rewrite(saved, lambda body: body["tree"][1].update(change))
    with pytest.raises(checkpoint.DamagedError, match=r"manifest.json: expected the manifest as it was written, got"):
        checkpoint.load(saved)


def test_other_schemas_and_moved_folders_are_refused(saved: Path) -> None:
    rewrite(saved, lambda body: body.update(schema=99))
    with pytest.raises(checkpoint.CheckpointError, match="expected schema 1, got 99 in .*; load it with"):
        checkpoint.load(saved)
    folder(saved, 1).rename(folder(saved, 3))
    with pytest.raises(checkpoint.DamagedError, match="step 1 in the folder of step 3"):
        checkpoint.load(saved, step=3)


def rewrite(directory: Path, edit: Any) -> None:
    """Writes another manifest for step 2, with a digest that fits it, as an attacker would."""
    path = folder(directory, 2) / "manifest.json"
    body = json.loads(path.read_text())["manifest"]
    edit(body)
    path.write_text(record.render(body))


# --- half-written steps, kills, bad arguments ---


def test_half_written_steps_are_skipped_named_and_replaced(saved: Path) -> None:
    (folder(saved, 2) / "manifest.json").unlink()
    assert checkpoint.steps(saved) == [1]
    assert checkpoint.load(saved)["round"] == 1
    with pytest.raises(
        checkpoint.CheckpointError, match=r"one of \[1\], got 2 \(half-written, no manifest: \[2\]\); load"
    ):
        checkpoint.load(saved, step=2)
    checkpoint.save(saved, 2, {"round": 22})
    assert checkpoint.load(saved) == {"round": 22}


@pytest.mark.parametrize(
    ("event", "word", "complete"),
    [("open", "arrays", [1, 2]), ("os.rename", "arrays.orbax", [1, 2]), ("os.rename", "manifest.json", [1, 2]),
     ("shutil.rmtree", "00000001", [2, 3])],
    ids=["while orbax writes", "before orbax commits", "before the manifest", "during a deletion"],
)  # fmt: skip
def test_a_kill_at_any_moment_leaves_the_last_good_step(
    saved: Path, event: str, word: str, complete: list[int]
) -> None:
    script = f"""
        import os, signal, sys
        import jax.numpy as jnp
        from jaxfed import checkpoint
        def kill(event, args):
            if event == {event!r} and {word!r} in str(args[0]):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        checkpoint.save({str(saved)!r}, 3, {{"params": {{"w": jnp.ones((2, 3))}}, "round": 3}}, keep=2)
    """
    assert run(script, check=False).returncode == -signal.SIGKILL
    assert checkpoint.steps(saved) == complete
    assert checkpoint.load(saved)["round"] == complete[-1]
    half = ({1, 2, 3} - set(complete)).pop()
    assert folder(saved, half).exists()
    with pytest.raises(checkpoint.CheckpointError, match=rf"got {half} \(half-written, no manifest: \[{half}\]\)"):
        checkpoint.load(saved, step=half)
    checkpoint.save(saved, half, {"round": half})
    assert checkpoint.load(saved, step=half) == {"round": half}


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        checkpoint.CheckpointError, match="expected a directory that can be written at .*file.*, got .*; choose"
    ):
        checkpoint.Writer(tmp_path / "file" / "below")


def test_a_complete_step_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="expected a new step, got 2, which is complete; use another"):
        checkpoint.save(saved, 2, params())
    assert checkpoint.load(saved)["round"] == 2


@pytest.mark.parametrize("step", [-1, 1.5, "1", True])
def test_steps_are_counts(saved: Path, step: Any) -> None:
    for call in (lambda: checkpoint.save(saved, step, params()), lambda: checkpoint.load(saved, step=step)):
        with pytest.raises(checkpoint.CheckpointError, match=r"expected a step that is an integer >= 0, got .*; pass"):
            call()


def test_steps_that_are_not_there_are_named(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"expected a complete step .* one of \[1, 2\], got 9.*; load"):
        checkpoint.load(saved, step=9)
    nowhere = tmp_path_factory.getbasetemp() / "nowhere"
    with pytest.raises(checkpoint.CheckpointError, match=r"one of \[\], got None"):
        checkpoint.load(nowhere)
    assert checkpoint.steps(nowhere) == []
    assert checkpoint.latest(nowhere) is None


@pytest.mark.parametrize(
    ("leaf", "got"),
    [(object(), "object"), (np.array(["a"]), "ndarray <U1"), (b"raw", "bytes"), (1j, "complex")],
    ids=["object", "text", "bytes", "complex"],
)
def test_leaves_that_cannot_be_saved_are_named(tmp_path: Path, leaf: Any, got: str) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=f"a.0: expected an array of numbers.* got {got}; convert it"):
        checkpoint.save(tmp_path, 0, {"a": [leaf]})
    assert checkpoint.steps(tmp_path) == []


def test_arrays_without_data_are_refused(tmp_path: Path) -> None:
    donated = jnp.ones(3)
    donated.delete()
    for leaf in (donated, jax.ShapeDtypeStruct((3,), jnp.float32)):
        with pytest.raises(checkpoint.CheckpointError, match="a: expected an array with data, got .*; save it before"):
            checkpoint.save(tmp_path, 0, {"a": leaf})


def test_folders_of_others_are_left_alone(saved: Path) -> None:
    shutil.copytree(folder(saved, 2), saved / "00000002 (copy)")
    assert checkpoint.steps(saved) == [1, 2]
    with checkpoint.Writer(saved, keep=1) as writer:
        writer.save(3, params())
    assert sorted(path.name for path in saved.iterdir()) == ["00000002 (copy)", "00000003"]


def test_metadata_and_keep_are_checked(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="expected metadata that JSON can hold, got .*; convert it"):
        checkpoint.save(tmp_path, 0, params(), metadata={"key": object()})
    with pytest.raises(checkpoint.CheckpointError, match="expected keep >= 1 or None, got 0; None keeps every step"):
        checkpoint.Writer(tmp_path, keep=0)


def run(script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check)
