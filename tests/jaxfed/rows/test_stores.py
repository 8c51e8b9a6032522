"""Where clients' rows are kept: three tiers that give the same run, slots of checkpoints, and disks that fail."""

import functools
import os
import resource
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.rows._slots import Slots
from jaxfed.rows._staged import positions
from jaxfed.rows._tables import FileTable, MemoryTable
from tests.support.jaxfed import problems
from tests.support.jaxfed.killed_run import run as killed_run
from tests.support.jaxfed.runs import arguments

TIERS = ["host", "disk"]


def store_of(tier, directory, dtype=None):
    makers = {"device": jaxfed.DeviceStore, "host": jaxfed.HostStore}
    return jaxfed.DiskStore(directory, dtype) if tier == "disk" else makers[tier](dtype)


@functools.cache
def algorithm_of(name):
    """The same one each time, so that its rounds are compiled once."""
    return jaxfed.algorithms.get(name)(problems.loss_fn, relaxation=0.1)


def simulate(name="fedspeed", rounds=6, **options):
    """Cohorts of three of five clients, so that many take part twice in a row."""
    problem = problems.make_problem(21, np.float32)
    algorithm = algorithm_of(name)
    server = algorithm.init(problem.params, problems.CLIENTS)
    chosen = {"sampler": jaxfed.FixedSize(3), "batching": jaxfed.Steps(2, 4), "rounds": rounds, **options}
    data = jaxfed.data.client_data(problem.clients)
    return jaxfed.simulate(algorithm, server, data, **arguments(**chosen))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", ["fedspeed", "scaffold", "fedavg"])
def test_every_tier_gives_the_same_run(tmp_path, tier, name):
    on_mesh, history = simulate(name)
    elsewhere, other = simulate(name, store=store_of(tier, tmp_path))
    chex.assert_trees_all_close(elsewhere, on_mesh, atol=1e-7)
    chex.assert_trees_all_close(other.rounds["loss"], history.rounds["loss"], atol=1e-6)


@pytest.mark.parametrize("tier", TIERS)
def test_a_row_without_arrays_is_kept_too(tmp_path, tier):
    fixed = functools.partial(arguments, sampler=jaxfed.FixedSize(3), batching=jaxfed.Steps(2, 4), rounds=2)
    algorithm = jaxfed.algorithms.fedavg(problems.loss_fn)
    problem = problems.make_problem(21, np.float32)
    server = algorithm.init(problem.params, problems.CLIENTS)
    data, options = jaxfed.data.client_data(problem.clients), fixed()
    expected, _ = jaxfed.simulate(algorithm, server, data, **options)
    options = fixed(store=store_of(tier, tmp_path))
    chex.assert_trees_all_close(jaxfed.simulate(algorithm, server, data, **options)[0], expected, atol=1e-7)


@pytest.mark.parametrize("tier", ["device", *TIERS])
def test_rows_in_bfloat16_are_close_and_parameters_stay_float32(tmp_path, tier):
    exact, _ = simulate(rounds=8)
    rounded, _ = simulate(rounds=8, store=store_of(tier, tmp_path, jnp.bfloat16))
    assert rounded.params["weight"].dtype == jnp.float32
    chex.assert_trees_all_close(rounded.params, exact.params, atol=2e-2)
    assert (rounded.params["weight"] != exact.params["weight"]).any()
    if tier == "disk":
        row = 3 * sum(leaf.size for leaf in jax.tree.leaves(exact.params))  # dual and last result, two bytes each
        assert (tmp_path / "rows.bin").stat().st_size <= problems.CLIENTS * 2 * row


@pytest.mark.parametrize("tier", ["device", *TIERS])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_resume_is_bit_identical_on_every_tier(tmp_path, tier, dtype):
    whole, _ = simulate(rounds=7, store=store_of(tier, tmp_path / "whole", dtype))
    store, saved = store_of(tier, tmp_path / "rows", dtype), jaxfed.Checkpointing(tmp_path / "run", every=2)
    simulate(rounds=3, store=store, checkpoint=saved)
    resumed, _ = simulate(rounds=7, store=store, checkpoint=saved)
    chex.assert_trees_all_equal(resumed, whole)


@pytest.mark.parametrize("tier", TIERS)
def test_an_older_checkpoint_still_has_its_rows(tmp_path, tier):
    """The newest checkpoint is gone: what later rounds wrote must not be what the older one refers to."""
    whole, _ = simulate(rounds=8)
    store, saved = store_of(tier, tmp_path / "rows"), jaxfed.Checkpointing(tmp_path / "run", every=1, keep=4)
    simulate(rounds=6, store=store, checkpoint=saved)
    for step in (5, 6):
        (tmp_path / "run" / f"{step:08d}" / "manifest.json").unlink()
    resumed, _ = simulate(rounds=8, store=store, checkpoint=saved)
    chex.assert_trees_all_close(resumed, whole, atol=1e-7)


def test_a_run_may_continue_on_more_devices(tmp_path):
    whole, _ = simulate(rounds=6, sampler=jaxfed.FixedSize(4))
    simulate(rounds=3, sampler=jaxfed.FixedSize(4), checkpoint=tmp_path)
    resumed, _ = simulate(
        rounds=6, sampler=jaxfed.FixedSize(4), checkpoint=tmp_path, mesh=jax.make_mesh((4,), ("clients",))
    )
    chex.assert_trees_all_close(resumed, whole, atol=1e-6)


def test_on_a_mesh_every_device_holds_its_part_of_the_rows():
    from jaxfed.layout.sharding import Shardings
    from jaxfed.rows import Start
    from jaxfed.rows.rounds import World

    problem = problems.make_problem(21, np.float32)
    algorithm, data = jaxfed.fedspeed(problems.loss_fn), jaxfed.data.client_data(problem.clients)
    server, mesh = algorithm.init(problem.params, problems.CLIENTS), jax.make_mesh((4,), ("clients",))
    start = Start(server, algorithm.init_client(problem.params), World(data), lambda _: None, Shardings.of(mesh))
    rows = jaxfed.DeviceStore().engine(start).snapshot(0, 0)["rows"]
    assert rows.memory["weight"].shape[0] == 8  # five clients, padded to two a device
    assert {shard.data.shape[0] for shard in rows.memory["weight"].addressable_shards} == {2}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_a_mesh_and_every_tier(tmp_path, tier, shape):
    alone, _ = simulate(sampler=jaxfed.FixedSize(4))
    mesh = jax.make_mesh(shape, ("clients", "more")[: len(shape)])
    spread, _ = simulate(sampler=jaxfed.FixedSize(4), store=store_of(tier, tmp_path), mesh=mesh)
    chex.assert_trees_all_close(spread, alone, atol=1e-6)


def test_slots_that_a_checkpoint_refers_to_are_never_written():
    """A thousand random writes, checkpoints and releases against dictionaries."""
    generator, slots, table = np.random.default_rng(0), Slots(20), {}
    written, kept = {}, {}
    for step in range(1000):
        ids = generator.choice(20, size=3, replace=False)
        for client, slot in zip(ids.tolist(), slots.assign(ids).tolist(), strict=True):
            table[slot] = written[client] = (step, client)
        if step % 3 == 0:
            slots.keep(step)
            kept[step] = slots.of_client.copy(), dict(written)
        if step % 9 == 0:
            slots.release(step - 12)
            kept = {number: each for number, each in kept.items() if number >= step - 12}
        for of_client, rows in [*kept.values(), (slots.of_client, written)]:
            assert all(table[of_client[client]] == row for client, row in rows.items())
    assert slots.size <= 20 * 6


@pytest.mark.parametrize("mesh", [None, jax.make_mesh((2,), ("clients",))], ids=["one device", "mesh"])
def test_fetched_rows_wait_in_page_locked_memory(mesh):
    from jaxfed.layout.sharding import Shardings, on_device, pinned, put

    sharding, rows = Shardings.of(mesh).spread, {"dual": np.arange(8.0, dtype=np.float32).reshape(4, 2)}
    waiting = pinned(rows, sharding)
    moved = put(waiting, on_device(sharding))
    assert (waiting["dual"].sharding.memory_kind, moved["dual"].sharding.memory_kind) == ("pinned_host", "device")
    assert moved["dual"].sharding.num_devices == (1 if mesh is None else 2)
    np.testing.assert_array_equal(moved["dual"], rows["dual"])


def test_rows_handed_over_are_those_of_the_same_client():
    np.testing.assert_array_equal(positions(np.array([4, -1, 2, 9]), np.array([2, 4, -1, 7])), [1, -1, 0, -1])


@pytest.mark.parametrize("table", [MemoryTable, lambda row: FileTable(Path("rows.bin"), row)], ids=["memory", "file"])
def test_tables(tmp_path, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    rows = np.arange(40, dtype=np.uint8).reshape(4, 10)
    opened = table(10)
    opened.write(np.array([7, 0, 3, 1]), rows)
    opened.write(np.array([3]), rows[:1])
    np.testing.assert_array_equal(opened.read(np.array([1, 3, 7])), rows[[3, 0, 0]])
    opened.sync()
    opened.close()


def test_a_million_clients_take_space_only_where_drawn(tmp_path):
    """A model of 100,000 parameters: rows of all clients would be 400 GB."""
    num_clients = 1_000_000
    params = {"w": jnp.zeros((100_000,), jnp.float32)}

    def loss_fn(params, batch, key):
        return jnp.mean(jnp.square(params["w"] - jnp.mean(batch["x"]))), ()

    algorithm = jaxfed.fedspeed(loss_fn)
    data = jaxfed.data.partitioned({"x": np.ones((1000, 1), np.float32)}, np.arange(num_clients)[:, None] % 1000)
    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(params, num_clients),
        data,
        rounds=3,
        sampler=jaxfed.FixedSize(10),
        batching=jaxfed.Steps(2, 1),
        layout=jaxfed.Layout(store=jaxfed.DiskStore(tmp_path / "rows")),
        report=jaxfed.Report(progress=False),
        checkpoint=tmp_path / "run",
    )
    assert int(server.round) == 3
    assert history.rounds["loss"][-1] < history.rounds["loss"][0]
    assert (tmp_path / "rows" / "rows.bin").stat().st_size <= 30 * 400_000
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("*")) < 3 * 10 * num_clients


def test_a_file_in_the_way_of_the_directory_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match=r"expected a directory for client rows .*taken"):
        simulate(store=jaxfed.DiskStore(tmp_path / "taken"))


def test_two_runs_on_one_directory_are_refused(tmp_path):
    held = FileTable(tmp_path / "rows.bin", 4)
    with pytest.raises(OSError, match=r"another run holds it"):
        simulate(store=jaxfed.DiskStore(tmp_path))
    held.close()


def test_damaged_and_missing_rows_are_named(tmp_path):
    store, saved = jaxfed.DiskStore(tmp_path / "rows"), tmp_path / "run"
    simulate(rounds=4, store=store, checkpoint=saved)
    path = tmp_path / "rows" / "rows.bin"
    whole = path.read_bytes()
    path.write_bytes(bytes(byte ^ 1 for byte in whole))
    with pytest.raises(OSError, match=r"expected client \d's row as it was written, got other bytes in .*rows.bin"):
        simulate(rounds=9, store=store, checkpoint=saved)
    path.write_bytes(whole[:100])
    with pytest.raises(OSError, match=r"expected row \d in .*rows.bin, the file ends before it"):
        simulate(rounds=9, store=store, checkpoint=saved)


FULL = """
import resource, sys
from tests.support.jaxfed.killed_run import run
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
run({directory!r}, 3, disk=True)
"""


def test_a_disk_that_takes_no_more_is_an_error_with_the_path(tmp_path):
    """A limit on the size of files, as a quota sets it: an exception, no signal."""
    program = FULL.format(limit=2_000_000, directory=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "expected to write client rows (File too large)" in done.stderr
    assert "run-rows/rows.bin" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_full_disk_is_an_error_with_the_path(small_disk):
    with pytest.raises(OSError, match=r"No space left on device.*rows.bin"):
        killed_run(None, 3, store=jaxfed.DiskStore(small_disk / "rows"))


def test_a_read_only_disk_is_an_error_with_the_path(small_disk):
    (small_disk / "rows").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"Read-only file system.*rows"):
        killed_run(None, 3, store=jaxfed.DiskStore(small_disk / "rows"))


def test_a_closed_store_releases_its_file(tmp_path):
    simulate(rounds=1, store=jaxfed.DiskStore(tmp_path))
    simulate(rounds=1, store=jaxfed.DiskStore(tmp_path))
    assert not [name for name in os.listdir("/proc/self/fd") if str(tmp_path) in _target(name)]


def _target(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""
