"""Checkpoints come back bit for bit or not at all, and what is damaged is found, told and set aside."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_core.run.checkpoint import CheckpointError, Checkpoints, read
from tests.run.small import bits

DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int32",
    "int8",
    "uint32",
    "bool",
    "float8_e4m3fn",
    "int4",
    "complex64",
]


def state(value=1):
    return {
        "w": jnp.full((2, 3), value, jnp.float32),
        "round": jnp.int32(value),
        "key": jax.random.key(value),
    }


def write(run_dir, rounds=(1, 2, 3), keep=3, best=None):
    with Checkpoints(run_dir, keep) as checkpoints:
        for round in rounds:
            checkpoints.save(round, state(round), {"note": round, "best": best})


def home(run_dir, round):
    return run_dir / "checkpoints" / f"{round:08d}"


def array_file(folder):
    """The largest file of arrays."""
    return max(
        (path for path in (folder / "state").rglob("*") if path.parent.name == "d"),
        key=lambda path: path.stat().st_size,
    )


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(bytes(raw))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    numbers = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 7, (3, 2))
    saved = {
        "a": jnp.asarray(numbers.astype(getattr(ml_dtypes, dtype, dtype))),
        "b": jnp.zeros((0, 4), dtype),
        "c": jnp.ones((), dtype),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
        back = checkpoints.newest().place(jax.tree.map(jnp.zeros_like, saved))
    assert bits(back) == bits(saved)


def test_numbers_that_equality_does_not_tell_apart_come_back(tmp_path):
    nan = np.array([0x7FC00001, 0xFFC00002, 0x80000000, 0x7F800000, 0x00000001], np.uint32).view(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": nan}, {})
        back = checkpoints.newest().place({"x": np.zeros(5, np.float32)})
    assert np.asarray(back["x"]).tobytes() == nan.tobytes()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_come_back_with_their_implementation(tmp_path, impl):
    saved = {"key": jax.random.key(3, impl=impl), "many": jax.random.split(jax.random.key(3, impl=impl), 4)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
        back = checkpoints.newest().place(jax.tree.map(lambda x: x, saved))
    assert back["key"].dtype == saved["key"].dtype and bits(back) == bits(saved)


def test_a_sharded_state_comes_back_on_its_devices(tmp_path):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), "x"), PartitionSpec("x"))
    saved = {"x": jax.device_put(jnp.arange(4.0), sharding)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
        back = checkpoints.newest().place(saved)
    assert back["x"].sharding == sharding and bits(back) == bits(saved)


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    x = np.ones(1000, np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x}, {})
        x[:] = 2  # as a donated buffer would be
        assert np.asarray(checkpoints.newest().arrays[0]).tolist() == [1.0] * 1000


def test_the_last_ones_are_kept_and_the_best_that_they_name(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for round, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)):
            checkpoints.save(round, state(round), {"best": best})
            checkpoints.wait()
            if round == 5:
                assert checkpoints.rounds() == [2, 4, 5]  # a run that falls back to 4 finds its best
        assert checkpoints.rounds() == [5, 6]
    assert os.readlink(tmp_path / "best") == "checkpoints/00000005"
    assert read(tmp_path / "best").round == 5


DAMAGE = {
    "array file missing": (lambda f: array_file(f).unlink(), r"state/.* is missing"),
    "array file truncated": (lambda f: truncate(array_file(f)), r"state/.* is not as it was written"),
    "array byte flipped": (lambda f: flip(array_file(f)), r"state/.* is not as it was written"),
    "orbax metadata missing": (lambda f: (f / "state" / "_METADATA").unlink(), r"state/_METADATA is missing"),
    "description missing": (
        lambda f: (f / "checkpoint.json").unlink(),
        r"checkpoint.json cannot be read: FileNotFoundError",
    ),
    "description truncated": (
        lambda f: truncate(f / "checkpoint.json"),
        r"checkpoint.json cannot be read: JSONDecodeError",
    ),
    "description empty": (
        lambda f: (f / "checkpoint.json").write_text(""),
        r"checkpoint.json cannot be read",
    ),
    "an older one under its name": (
        lambda f: (shutil.rmtree(f), shutil.copytree(f.with_name("00000001"), f)),
        "it is the checkpoint of round 1, under another name",
    ),
    "description byte flipped": (
        lambda f: flip(f / "checkpoint.json"),
        r"checkpoint.json (is not as it was written|cannot be read)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.meets(
    "164.312(c)(1)",
    by="checkpoints whose digests are checked; of a damaged one the one before is taken, and that is told",
)
@pytest.mark.meets("164.308(a)(7)", by="several checkpoints, each verified before it is used")
def test_a_damaged_newest_falls_back_says_so_and_is_set_aside(tmp_path, kind, caplog):
    damage, reason = DAMAGE[kind]
    write(tmp_path, (1, 2, 3), best=2)
    damage(home(tmp_path, 3))
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.ERROR):
        saved = checkpoints.newest()
        assert (saved.round, saved.about["note"]) == (2, 2)
        assert bits(saved.place(state(0))) == bits(state(2))
        assert caplog.records[0].levelno == logging.ERROR
        said = rf"checkpoint of round 3 is damaged \({reason}.*\), set aside as damaged-00000003; going on from round 2"
        assert re.fullmatch(said, caplog.records[0].getMessage())
        checkpoints.save(3, state(3), {})  # the step can be written again
        checkpoints.wait()
        assert checkpoints.newest().round == 3
    assert (tmp_path / "checkpoints" / "damaged-00000003").is_dir()


def test_a_number_that_orbax_reads_differently_is_told_by_its_leaf(tmp_path, monkeypatch):
    write(tmp_path, (1,))
    monkeypatch.setattr("fedjax_core.run.checkpoint._file_digest", lambda path, sync=False: "same")
    write(tmp_path, (2,))
    flip(array_file(home(tmp_path, 2)))
    monkeypatch.setattr(
        ocp.Checkpointer,
        "restore",
        lambda self, *a, **k: {f"{i:05d}": np.zeros((2, 3), np.float32) for i in range(3)},
    )
    with pytest.raises(CheckpointError, match=r"is damaged: \['key'\] is not as it was saved"):
        read(home(tmp_path, 2))


def test_none_readable_is_an_error_and_changes_nothing(tmp_path):
    write(tmp_path, (1, 2))
    for round in (1, 2):
        (home(tmp_path, round) / "checkpoint.json").unlink()
    for _ in range(2):
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(
                CheckpointError,
                match=r"no checkpoint in .* can be read \(round 2: .*; round 1: .*\)\. Bring one back",
            ),
        ):
            checkpoints.newest()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000002"]


def test_no_checkpoints_is_a_fresh_start(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() is None


@pytest.mark.parametrize(
    "other, said",
    [
        ({"w": jnp.zeros((3, 3))}, r"\['w'\] is float32\[2, 3\] in the checkpoint and float32\[3, 3\] now"),
        (
            {"w": jnp.zeros((2, 3), jnp.bfloat16)},
            r"float32\[2, 3\] in the checkpoint and bfloat16\[2, 3\] now",
        ),
        ({"v": jnp.zeros(1)}, r"\['v'\] is absent in the checkpoint and float32\[1\] now"),
        (
            {"round": jax.random.key(0)},
            r"\['round'\] is int32\[\] in the checkpoint and key<.*> uint32\[2\] now",
        ),
        (
            {"key": jax.random.key(0, impl="rbg")},
            r"key<threefry2x32> uint32\[2\] in the checkpoint and key<rbg> uint32\[4\] now",
        ),
    ],
)
def test_another_structure_is_refused_by_the_name_of_the_leaf(tmp_path, other, said):
    write(tmp_path, (7,))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=f"round 7 does not fit .*{said}.*another run_dir"),
    ):
        checkpoints.newest().place({**state(0), **other})


def test_half_written_remains_are_removed(tmp_path):
    write(tmp_path, (1,))
    (tmp_path / "checkpoints" / "writing-00000002" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest().round == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_a_failed_save_is_told_at_the_next_and_the_last_good_survives(tmp_path, monkeypatch):
    def full(self, directory, **kwargs):
        (Path(directory) / "d").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    write(tmp_path, (1, 2), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    said = r"could not write the checkpoint of round 3 .* No space left on device\. The last good one, of round 2, is kept: free some space"
    with monkeypatch.context() as patched, Checkpoints(tmp_path, keep=1) as checkpoints:
        patched.setattr(ocp.Checkpointer, "save", full)
        checkpoints.save(3, state(3), {})
        with pytest.raises(CheckpointError, match=said):
            checkpoints.save(4, state(4), {})
        checkpoints.save(4, state(4), {})
        with pytest.raises(CheckpointError, match="round 4"):
            checkpoints.wait()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert bits(checkpoints.newest().place(state(0))) == bits(state(2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        ocp.Checkpointer,
        "save",
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state(3), {})
        raise ZeroDivisionError
    assert "could not write the checkpoint of round 3" in caplog.text


FULL_DISK = """
import resource, sys
import jax.numpy as jnp, numpy as np
from fedjax_core.run.checkpoint import CheckpointError, Checkpoints

rng = np.random.default_rng(0)
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"x": rng.random(100_000)}, {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # files of at most 100 kB, as if the disk filled
    checkpoints.save(2, {"x": rng.random(100_000)}, {})
    try:
        checkpoints.wait()
    except CheckpointError as error:
        print(error)
print(checkpoints.rounds())
"""


def test_a_file_that_cannot_be_written_in_full(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    out = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    error, rounds = out.stdout.strip().splitlines()[0], out.stdout.strip().splitlines()[-1]
    assert "could not write the checkpoint of round 2" in error and rounds == "[1]"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest().round == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
