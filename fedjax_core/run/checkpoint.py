"""Checkpoints: the whole `State` and what the run knows of itself, written in the background, whole or not at all.

    run_dir/checkpoints/00000020/state/...           the arrays, by Orbax
    run_dir/checkpoints/00000020/checkpoint.json     names, dtypes, shapes and digests; configuration and progress
    run_dir/best -> checkpoints/00000010             the best so far, by evaluation

A checkpoint is written beside its place and renamed into it, and only then are older ones removed, so a crash or a full disk
costs the newest at most. Every leaf and every file has a SHA-256 digest: Orbax reads a flipped byte in an array as just another
number. A damaged checkpoint is set aside under another name, and the one before it is used.

>>> import tempfile, jax.numpy as jnp
>>> run_dir = tempfile.TemporaryDirectory()
>>> with Checkpoints(run_dir.name, keep=2) as checkpoints:
...     for round in (1, 2, 3):
...         checkpoints.save(round, {"w": jnp.full(2, round)}, {"note": "hello"})
...     checkpoints.wait()
...     saved = checkpoints.newest()
>>> saved.round, saved.about, saved.place({"w": jnp.zeros(2, int)})["w"].tolist()
(3, {'note': 'hello'}, [3, 3])
>>> run_dir.cleanup()
"""

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedjax_core.describe import digest as digest

log = logging.getLogger("fedjax_core")

_ABOUT, _STATE, _WRITING, _DAMAGED = "checkpoint.json", "state", "writing-", "damaged-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class _Damaged(Exception):
    """Why a checkpoint cannot be trusted."""


class Leaf(NamedTuple):
    """One array of a saved state."""

    name: str  # its path in the tree: server.params['w']
    dtype: str
    shape: tuple[int, ...]
    key: str | None  # the implementation, for a typed PRNG key, whose data is what is stored
    digest: str  # SHA-256 of the bytes

    @property
    def kind(self) -> str:
        """What has to agree for the leaf to be put in another's place."""
        return f"{f'key<{self.key}> ' if self.key else ''}{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read back and verified, still on the host."""

    round: int
    about: dict[str, Any]
    leaves: list[Leaf]
    arrays: list[np.ndarray]

    def place(self, like: Any) -> Any:
        """The saved state in the structure and on the devices of `like`; raises, naming the leaf, where they do not fit.

        A store of clients' rows in `like` (`fedjax_core.lanes.tiers`) takes back however many rows were saved.
        """
        sizes = {leaf.name: leaf.shape for leaf in self.leaves}

        def room(path: Any, x: Any) -> Any:
            return x.shapes(sizes.get(_name(path) + "['who']", (0,))[0]) if hasattr(x, "restored") else x

        expected, structure = jax.tree_util.tree_flatten_with_path(jax.tree_util.tree_map_with_path(room, like))
        saved, now = {leaf.name: leaf.kind for leaf in self.leaves}, {_name(path): _kind(x) for path, x in expected}
        wrong = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
        if wrong or list(saved) != list(now):
            lines = [f"{name} is {saved.get(name, 'absent')} in the checkpoint and {now.get(name, 'absent')} now" for name in wrong[:5]]
            lines += [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
            said = "; ".join(lines) or "another order of leaves"
            raise ValueError(
                f"the checkpoint of round {self.round} does not fit the state of this run: {said}. "
                "Build the same model and algorithm, or choose another run_dir."
            )
        placed = [_place(leaf, array, x) for leaf, array, (_, x) in zip(self.leaves, self.arrays, expected, strict=True)]
        stored = jax.tree.unflatten(structure, placed)
        return jax.tree.map(lambda x, found: x.restored(jax.device_get(found)) if hasattr(x, "restored") else found, like, stored)


class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the best that any of these names. Use it in a `with`."""

    def __init__(self, run_dir: str | os.PathLike[str], keep: int = 3) -> None:
        self.run_dir, self.folder, self.keep = Path(run_dir).absolute(), Path(run_dir).absolute() / "checkpoints", keep
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # orbax runs an event loop: never in the caller's thread
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> "Checkpoints":
        self.folder.mkdir(exist_ok=True)
        for remains in self.folder.glob(f"{_WRITING}*"):
            shutil.rmtree(remains)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # what ended the `with` matters more
        finally:
            self._writer.shutdown()
            self._orbax.close()

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, oldest first."""
        return sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit())

    def save(self, round: int, state: Any, about: dict[str, Any]) -> None:
        """Copies the state to the host and writes it in the background; raises where the save before this one failed.

        `about["best"]`, where there is one, is the round of the checkpoint to keep as the best.
        """
        self.wait()
        leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x: x.saved() if hasattr(x, "saved") else x, state))
        data = jax.device_get([jax.random.key_data(x) if _is_key(x) else x for _, x in leaves])
        arrays = [np.array(x) for x in data]  # a copy, for on CPU this may be the buffer itself, which the next round reuses
        described = [(_name(path), str(jax.random.key_impl(x)) if _is_key(x) else None) for path, x in leaves]
        self._pending = round, self._writer.submit(self._write, round, described, arrays, about)

    def wait(self) -> None:
        """Returns when nothing is being written; raises `CheckpointError` where that failed."""
        if self._pending is None:
            return
        (round, future), self._pending = self._pending, None
        error = future.exception()
        if error is not None:
            good = self.rounds()
            kept = f"The last good one, of round {good[-1]}, is kept" if good else "There is none before it"
            raise CheckpointError(
                f"could not write the checkpoint of round {round} to {self.folder}: {type(error).__name__}: {error}. "
                f"{kept}: free some space or choose another disk, and start again with the same run_dir."
            ) from error

    def newest(self) -> Saved | None:
        """The newest checkpoint that can be read in full, None where there is none at all; damaged ones are set aside.

        Raises `CheckpointError` where there are some and none is readable: beginning afresh is not for this to decide.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for round in reversed(self.rounds()):
            try:
                saved = self._writer.submit(_read, self._home(round)).result()
            except _Damaged as reason:
                damaged.append((round, str(reason)))
                continue
            for bad, why in damaged:
                aside = self._set_aside(bad)
                log.error("checkpoint of round %d is damaged (%s), set aside as %s; going on from round %d", bad, why, aside, round)
            self._point_to_best(saved.about.get("best"))
            return saved
        if damaged:
            reasons = "; ".join(f"round {round}: {why}" for round, why in damaged)
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({reasons}). Bring one back from a backup, "
                "or begin afresh in another run_dir; nothing was removed."
            )
        return None

    def _home(self, round: int) -> Path:
        return self.folder / f"{round:08d}"

    def _write(self, round: int, described: list[tuple[str, str | None]], arrays: list[np.ndarray], about: dict[str, Any]) -> None:
        writing, home = self.folder / f"{_WRITING}{round:08d}", self._home(round)
        try:
            # Named by number: a path in the tree may hold any character. Orbax refuses arrays without elements; those are their shape.
            self._orbax.save(writing / _STATE, args=ocp.args.PyTreeSave({f"{i:05d}": x for i, x in enumerate(arrays) if x.size}))
            leaves = [Leaf(name, str(x.dtype), x.shape, key, digest(x)) for (name, key), x in zip(described, arrays, strict=True)]
            files = {str(path.relative_to(writing)): _file_digest(path, sync=True) for path in sorted(writing.rglob("*")) if path.is_file()}
            body = {"round": round, "about": about, "leaves": leaves, "files": files}
            write_whole(writing / _ABOUT, json.dumps({"digest": _body_digest(body), "body": body}))
            os.rename(writing, home)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        self._point_to_best(about.get("best"))
        self._prune()

    def _set_aside(self, round: int) -> str:
        names = (f"{_DAMAGED}{round:08d}" + (f"-{i}" if i else "") for i in range(1_000_000))
        name = next(name for name in names if not (self.folder / name).exists())
        os.rename(self._home(round), self.folder / name)
        return name

    def _prune(self) -> None:
        rounds = self.rounds()
        kept = set(rounds[-self.keep :])
        for round in rounds[-self.keep :]:  # whichever of these a run goes on from, its best is there
            try:
                kept.add(_read_about(self._home(round))["about"].get("best"))
            except _Damaged:
                continue
        for round in rounds:
            if round not in kept:
                shutil.rmtree(self._home(round))

    def _point_to_best(self, round: int | None) -> None:
        link, fresh = self.run_dir / "best", self.run_dir / "best.new"
        if round is not None:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(Path(self.folder.name) / self._home(round).name)
            os.replace(fresh, link)


def read(path: Path) -> Saved:
    """The checkpoint in one folder; raises `CheckpointError` where it is damaged."""
    with ThreadPoolExecutor(1) as reader:
        try:
            return reader.submit(_read, path).result()
        except _Damaged as reason:
            raise CheckpointError(f"the checkpoint in {path} is damaged: {reason}") from reason


def write_whole(path: Path, text: str) -> None:
    """Writes the file whole or not at all, and on the disk when this returns."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _read(path: Path) -> Saved:
    body = _read_about(path)
    for name, expected in body["files"].items():  # before Orbax reads any: its errors leave callbacks behind, and some damage is none to it
        if not (path / name).is_file():
            raise _Damaged(f"{name} is missing")
        if _file_digest(path / name) != expected:
            raise _Damaged(f"{name} ({(path / name).stat().st_size} bytes) is not as it was written")
    leaves = [Leaf(name, dtype, tuple(shape), key, known) for name, dtype, shape, key, known in body["leaves"]]
    full = {f"{i:05d}": ocp.RestoreArgs(restore_type=np.ndarray) for i, leaf in enumerate(leaves) if 0 not in leaf.shape}
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            found = orbax.restore(path / _STATE, args=ocp.args.PyTreeRestore(restore_args=full))
    except Exception as error:  # tensorstore's errors are of many types
        raise _Damaged(f"Orbax cannot read it: {error}") from error
    arrays = [np.asarray(found[f"{i:05d}"]) if 0 not in leaf.shape else np.zeros(leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    for leaf, array in zip(leaves, arrays, strict=True):
        if (str(array.dtype), array.shape, digest(array)) != (leaf.dtype, leaf.shape, leaf.digest):
            raise _Damaged(f"{leaf.name} is not as it was saved")
    return Saved(body["round"], body["about"], leaves, arrays)


def _read_about(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((path / _ABOUT).read_bytes())
        body: dict[str, Any] = found["body"]
        known = found["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{_ABOUT} cannot be read: {type(error).__name__}: {error}") from error
    if _body_digest(body) != known:
        raise _Damaged(f"{_ABOUT} is not as it was written")
    return body


def _body_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kind(x: Any) -> str:
    data = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
    dtype = data.dtype if hasattr(data, "dtype") else np.asarray(data).dtype
    return Leaf("", str(dtype), tuple(np.shape(data)), str(jax.random.key_impl(x)) if _is_key(x) else None, "").kind


def _place(leaf: Leaf, array: np.ndarray, like: Any) -> Any:
    if isinstance(like, (np.ndarray, np.generic)):
        return array
    value = jax.random.wrap_key_data(jnp.array(array), impl=leaf.key) if leaf.key else array
    if isinstance(like, jax.Array) and like.committed:
        return jax.device_put(value, like.sharding)
    return jnp.array(value)
