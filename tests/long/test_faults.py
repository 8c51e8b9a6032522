"""Damaged files, full and read-only disks, two writers: the error names the cause, and the last good step is whole.

The three kinds of work are those of ``tests.support.work``. What a kill does is in ``test_kills``.
"""

import os
import re
import shutil
import subprocess

import pytest

from jaxfed import checkpoint
from jaxfed.checkpoint import CheckpointError, DamagedError
from tests.support.killing import half_written, start
from tests.support.work import KINDS, same, saved_as, saving

COUNT = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Kind of work → (its directory, its result); done once, at first use."""
    results = {}

    def result(kind):
        if kind not in results:
            directory = tmp_path_factory.mktemp(kind)
            results[kind] = directory, KINDS[kind](directory, COUNT)
        return results[kind]

    return result


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def folder(directory, step):
    return directory / f"{step:08d}"


def files(directory, step):
    return sorted(path for path in folder(directory, step).rglob("*") if path.is_file())


def flipped(data, offset):
    return data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]


def damaged(data):
    """The content of a file with one bit flipped, or cut, at its start, middle and end."""
    offsets = sorted({0, len(data) // 2, len(data) - 1})
    return [flipped(data, offset) for offset in offsets] + [data[:offset] for offset in offsets]


# --- damaged files ---


@pytest.mark.parametrize("kind", ["simulation", "saving"])
def test_damage_to_any_file_is_named_with_the_last_good_step(finished, tmp_path, kind):
    """Every file of the newest step, flipped and cut at its beginning, middle and end."""
    directory = shutil.copytree(finished(kind)[0], tmp_path / "run")
    *_, before, last = checkpoint.steps(directory)
    for path in files(directory, last):
        name, data = path.relative_to(folder(directory, last)).as_posix(), path.read_bytes()
        for spoilt in damaged(data) if data else [b"more"]:
            path.write_bytes(spoilt)
            with pytest.raises(DamagedError, match=rf"(?s){re.escape(name)}: .*last good step is {before}") as raised:
                checkpoint.verify(directory)
            assert raised.value.file == name
        path.write_bytes(data)
    checkpoint.load(directory, step=before)
    checkpoint.verify(directory)


def spoil(directory, step):
    """Flips a bit in the largest file of a step."""
    path = max(files(directory, step), key=lambda path: path.stat().st_size)
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))


def test_a_damaged_step_is_recovered_from_the_one_before(finished, tmp_path, kind):
    """A federated run renames and skips it; training names the folder to delete."""
    directory = shutil.copytree(finished(kind)[0], tmp_path / "run")
    *_, before, last = checkpoint.steps(directory)
    spoil(directory, last)
    if kind == "simulation":
        with pytest.warns(UserWarning, match="renamed, continuing from the checkpoint before it"):
            assert same(KINDS[kind](directory, COUNT), finished(kind)[1])
    else:
        with pytest.raises(DamagedError, match=rf"delete .*{last:08d}; the last good step is {before}"):
            KINDS[kind](directory, COUNT)
        shutil.rmtree(folder(directory, last))
        assert same(KINDS[kind](directory, COUNT), finished(kind)[1])


# --- full disks ---


def size(directory):
    """Bytes of a folder on a tmpfs, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in directory.rglob("*") if path.is_file())


def leave(disk, room):
    """Fills a disk until ``room`` bytes are left."""
    free = os.statvfs(disk)
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_bsize - room, 1))


FULL = r"(?s)No space left on device.*free space or set permissions"
#: Orbax closes its event loop at the first failed write; later failures then raise in its threads.
LATE = pytest.mark.filterwarnings(r"ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning")


@LATE
def test_work_on_a_full_disk_continues_once_there_is_room(finished, small_disk, kind):
    """There is room for one step and a half."""
    source, expected = finished(kind)
    leave(small_disk, int(1.5 * size(folder(source, COUNT))))
    directory = small_disk / "run"
    with pytest.raises(CheckpointError, match=FULL):
        KINDS[kind](directory, COUNT)
    (small_disk / "filler").unlink()
    assert checkpoint.latest(directory) < COUNT
    checkpoint.verify(directory)
    assert same(KINDS[kind](directory, COUNT), expected)
    assert half_written(directory) == []


@LATE
def test_wherever_a_save_runs_out_of_room_the_last_good_step_loads(small_disk):
    """From no room at all up to just below what the save needs."""
    directory = small_disk / "run"
    checkpoint.save(directory, 1, saved_as(1))
    whole = size(folder(directory, 1))
    for room in (0, 4096, 8192, whole // 4, whole // 2, whole - 32768, whole - 8192, whole - 4096):
        leave(small_disk, room)
        with pytest.raises(CheckpointError, match=FULL):
            checkpoint.save(directory, 2, saved_as(2))
        assert checkpoint.steps(directory) == [1]
        (small_disk / "filler").unlink()
        shutil.rmtree(folder(directory, 2), ignore_errors=True)
    assert same(checkpoint.load(directory, like=saved_as(1)), saved_as(1))
    checkpoint.save(directory, 2, saved_as(2))
    assert same(checkpoint.load(directory, like=saved_as(2)), saved_as(2))


# --- read-only disks ---


def test_a_read_only_directory_is_refused_before_any_work_and_still_read(finished, small_disk, kind):
    directory = shutil.copytree(finished(kind)[0], small_disk / "run")
    last = checkpoint.latest(directory)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(CheckpointError, match=rf"can be written at {directory}, got .*read-only file system.*; choose"):
        KINDS[kind](directory, COUNT + 2)
    assert same(checkpoint.load(directory), checkpoint.load(finished(kind)[0]))
    assert checkpoint.steps(directory)[-1] == last


# --- two writers ---


def test_work_in_a_directory_with_a_writer_is_refused(finished, tmp_path, kind):
    directory = shutil.copytree(finished(kind)[0], tmp_path / "run")
    shutil.rmtree(folder(directory, COUNT))
    with (
        checkpoint.Writer(directory),
        pytest.raises(CheckpointError, match=rf"{directory} without a writer, got one at work; close it"),
    ):
        KINDS[kind](directory, COUNT)
    assert same(KINDS[kind](directory, COUNT), finished(kind)[1])


def test_of_two_processes_that_save_at_once_one_is_refused_and_nothing_is_mixed(tmp_path):
    processes = [start("saving", tmp_path, 40) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert 0 in [process.returncode for process in processes], errors
    for process, printed in zip(processes, errors, strict=True):
        assert process.returncode == 0 or "without a writer, got one at work" in printed, printed
    for step in checkpoint.steps(tmp_path):
        assert same(checkpoint.load(tmp_path, like=saved_as(step), step=step), saved_as(step))
    assert same(saving(tmp_path, 40), saved_as(40))
