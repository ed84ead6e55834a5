"""Checkpoints: the whole `State` and the run's own records, written in the background, completely or not at
all.

    run_dir/checkpoints/00000020/state/...           the arrays, by Orbax
    run_dir/checkpoints/00000020/checkpoint.json     names, dtypes, shapes and digests; configuration and progress
    run_dir/checkpoints/00000020/sealed              with a key: all of that in one encrypted file (`fedjax_core.run.encryption`)
    run_dir/best -> checkpoints/00000010             the best so far, by evaluation

A checkpoint is written under another name and renamed when it is complete; only then are older ones removed.
So a crash or a full disk costs the newest at most. Every leaf and every file has a SHA-256 digest: Orbax
reads a flipped byte in an array as just another number. A damaged checkpoint is set aside under another name,
and the one before it is used.

Orbax would write the plain state to the disk before anything could encrypt it. So an encrypted checkpoint
does not use it: it is the description as JSON and then the arrays' bytes, encrypted as they are written, and
no plain byte gets to the disk. A wrong key, or none, is an error and never taken for damage. What is not a
checkpoint stays plain: metrics, and rows of client state in a folder.

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

import contextlib
import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedjax_core.describe import digest as digest
from fedjax_core.files import FOLDER, close_to_others, write_whole
from fedjax_core.run import encrypted_checkpoint
from fedjax_core.run.snapshot import CheckpointError as CheckpointError
from fedjax_core.run.snapshot import Damaged, Leaf, Saved, taken

log = logging.getLogger("fedjax_core")

_ABOUT, _STATE, _WRITING, _DAMAGED = "checkpoint.json", "state", "writing-", "damaged-"


class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the best that any of these names. Use it in a `with`.
    With a `key`, encrypted.

    With `private` the files are for their owner alone; else as the umask says.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        keep: int = 3,
        key: bytes | None = None,
        *,
        private: bool = False,
    ) -> None:
        import orbax.checkpoint as ocp  # 0.6 s of a processor, paid only by a run that saves or restores

        self._key, self._private = key, private
        self.run_dir, self.folder, self.keep = (
            Path(run_dir).absolute(),
            Path(run_dir).absolute() / "checkpoints",
            keep,
        )
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        # orbax runs an event loop: never in the caller's thread
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self.set_aside: list[tuple[int, str, str]] = []
        """(round, its name now, what is wrong with it) of each damaged checkpoint that `newest` found."""

    def __enter__(self) -> "Checkpoints":
        self.folder.mkdir(FOLDER if self._private else 0o777, exist_ok=True)
        for remains in self.folder.glob(f"{_WRITING}*"):
            shutil.rmtree(remains)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def metadata(self) -> dict[int, dict[str, Any]]:
        """{round: its metadata} of each checkpoint that is not damaged."""
        metadata = {}
        for round in self.rounds():
            with contextlib.suppress(Damaged):
                metadata[round] = _read_metadata(self._home(round), self._key)["about"]
        return metadata

    def save(self, round: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copies the state to the host and writes it in the background; raises where the save before this one
        failed.

        `metadata["best"]`, where there is one, is the round of the checkpoint to keep as the best.
        """
        self.wait()
        leaves, arrays = taken(state)
        self._pending = round, self._writer.submit(self._write, round, leaves, arrays, metadata)

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
        """The newest checkpoint that can be read in full, None where there is none at all; renames damaged
        ones.

        Raises `CheckpointError` where there are some and none is readable, or where the key is not theirs: to
        begin afresh is the user's decision.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for round in reversed(self.rounds()):
            try:
                saved = self._writer.submit(_read, self._home(round), self._key).result()
            except Damaged as reason:
                damaged.append((round, str(reason)))
                continue
            for bad, why in damaged:
                aside = self._set_aside(bad)
                log.error(
                    "checkpoint of round %d is damaged (%s), set aside as %s; going on from round %d",
                    bad,
                    why,
                    aside,
                    round,
                )
                self.set_aside.append((bad, aside, why))
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

    def _write(
        self, round: int, leaves: list[Leaf], arrays: list[np.ndarray], metadata: dict[str, Any]
    ) -> None:
        writing, home = self.folder / f"{_WRITING}{round:08d}", self._home(round)
        try:
            if self._key is None:
                self._write_plain(writing, round, leaves, arrays, metadata)
            else:
                writing.mkdir()
                encrypted_checkpoint.write(
                    writing, self._key, {"round": round, "about": metadata, "leaves": leaves}, arrays
                )
            if self._private:
                # Only now it has all that Orbax made; the folder around it was closed before.
                close_to_others(writing)
            os.rename(writing, home)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        self._point_to_best(metadata.get("best"))
        self._prune()

    def _write_plain(
        self,
        writing: Path,
        round: int,
        leaves: list[Leaf],
        arrays: list[np.ndarray],
        metadata: dict[str, Any],
    ) -> None:
        import orbax.checkpoint as ocp

        # Named by number: a path in the tree may hold any character. Orbax refuses arrays without elements; those are
        # their shape.
        self._orbax.save(
            writing / _STATE,
            args=ocp.args.PyTreeSave({f"{i:05d}": x for i, x in enumerate(arrays) if x.size}),
        )
        leaves = [leaf._replace(digest=digest(x)) for leaf, x in zip(leaves, arrays, strict=True)]
        files = {
            str(path.relative_to(writing)): _file_digest(path, sync=True)
            for path in sorted(writing.rglob("*"))
            if path.is_file()
        }
        body = {"round": round, "about": metadata, "leaves": leaves, "files": files}
        write_whole(
            writing / _ABOUT, json.dumps({"digest": _body_digest(body), "body": body}), private=self._private
        )

    def _set_aside(self, round: int) -> str:
        names = (f"{_DAMAGED}{round:08d}" + (f"-{i}" if i else "") for i in range(1_000_000))
        name = next(name for name in names if not (self.folder / name).exists())
        os.rename(self._home(round), self.folder / name)
        return name

    def _prune(self) -> None:
        rounds = self.rounds()
        kept = set(rounds[-self.keep :])
        for round in rounds[-self.keep :]:  # the best of each must be there, whichever a run goes on from
            try:
                kept.add(_read_metadata(self._home(round), self._key)["about"].get("best"))
            except Damaged:
                continue
        for round in rounds:
            if round not in kept:
                shutil.rmtree(self._home(round))

    def _point_to_best(self, round: int | None) -> None:
        link, fresh = self.run_dir / "best", self.run_dir / "best.new"
        if round is not None:
            home = Path(self.folder.name) / self._home(round).name
            try:
                fresh.unlink(missing_ok=True)
                fresh.symlink_to(home)
                os.replace(fresh, link)
            # a file system without links, as exFAT or a Windows share: a file with the name does
            except OSError:
                write_whole(link, home.as_posix(), private=self._private)


def best(run_dir: Path) -> Path:
    """The folder of the best checkpoint; raises FileNotFoundError where there is none."""
    link = run_dir / "best"
    if link.is_file():
        return run_dir / link.read_text("utf-8")
    if not link.exists():
        raise FileNotFoundError(
            f"{link} does not exist: fit() keeps a best model where evaluate_every= is above 0"
        )
    return link.resolve()


def read(path: Path, key: bytes | None = None) -> Saved:
    """The checkpoint in one folder; raises `CheckpointError` where it is damaged, or the key is not its
    own."""
    with ThreadPoolExecutor(1) as reader:
        try:
            return reader.submit(_read, path, key).result()
        except Damaged as reason:
            raise CheckpointError(f"the checkpoint in {path} is damaged: {reason}") from reason


def _read(path: Path, key: bytes | None) -> Saved:
    import orbax.checkpoint as ocp

    if key is not None:
        _refuse_plain(path)
        return encrypted_checkpoint.read(path, key)
    if (path / encrypted_checkpoint.FILE).exists():
        raise CheckpointError(
            f"the checkpoint in {path} is encrypted: give encrypt= the key that it was written with"
        )
    body = _read_metadata(path, None)
    # before Orbax reads any: its errors leave callbacks behind, and some damage is none to it
    for name, expected in body["files"].items():
        if not (path / name).is_file():
            raise Damaged(f"{name} is missing")
        if _file_digest(path / name) != expected:
            raise Damaged(f"{name} ({(path / name).stat().st_size} bytes) is not as it was written")
    if path.name.isdigit() and int(path.name) != body["round"]:
        raise Damaged(f"it is the checkpoint of round {body['round']}, under another name")
    leaves = [
        Leaf(name, dtype, tuple(shape), key, known) for name, dtype, shape, key, known in body["leaves"]
    ]
    full = {
        f"{i:05d}": ocp.RestoreArgs(restore_type=np.ndarray)
        for i, leaf in enumerate(leaves)
        if 0 not in leaf.shape
    }
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            restored = orbax.restore(path / _STATE, args=ocp.args.PyTreeRestore(restore_args=full))
    except Exception as error:  # tensorstore's errors are of many types
        raise Damaged(f"Orbax cannot read it: {error}") from error
    arrays = [
        np.asarray(restored[f"{i:05d}"]) if 0 not in leaf.shape else np.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    for leaf, array in zip(leaves, arrays, strict=True):
        if (str(array.dtype), array.shape, digest(array)) != (leaf.dtype, leaf.shape, leaf.digest):
            raise Damaged(f"{leaf.name} is not as it was saved")
    return Saved(body["round"], body["about"], leaves, arrays)


def _refuse_plain(path: Path) -> None:
    if (path / _ABOUT).exists() and not (path / encrypted_checkpoint.FILE).exists():
        raise CheckpointError(
            f"the checkpoint in {path} is not encrypted, though a key was given: it may not be what this run wrote. "
            "Leave encrypt= out to go on unencrypted, or choose another run_dir."
        )


def _read_metadata(path: Path, key: bytes | None) -> dict[str, Any]:
    if key is not None:
        return encrypted_checkpoint.read_metadata(path, key)
    try:
        content: dict[str, Any] = json.loads((path / _ABOUT).read_bytes())
        body: dict[str, Any] = content["body"]
        known = content["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{_ABOUT} cannot be read: {type(error).__name__}: {error}") from error
    if _body_digest(body) != known:
        raise Damaged(f"{_ABOUT} is not as it was written")
    return body


def _body_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
