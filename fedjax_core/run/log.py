"""The records of a run: `metrics.jsonl` (a flat JSON object a line), TensorBoard scalars in `events`, and a
progress bar, or lines on standard error where there is no terminal.

    {"round": 20, "kind": "train", "loss": 0.31, "examples": 640.0, "clients": 10.0, "refused": 0.0}
    {"round": 20, "kind": "eval", "loss": 0.33, "accuracy": 0.87}
    {"round": 21, "kind": "train", "loss": 0.30, "examples": 540.0, "clients": 9.0, "refused": 0.0, "lacked": "mayo"}

The last one is of real sites, some of which a round may lack: it has their names, separated by spaces.

A number that is not finite is written as null. On resume the lines after the checkpoint's round are cut, and
TensorBoard is told to forget them, so that no round is there twice and none is missing.

>>> with Log(None, rounds=2, progress=False) as log:
...     log.write(1, "train", {"loss": 0.5, "examples": 10.0})
>>> log.records
[{'round': 1, 'kind': 'train', 'loss': 0.5, 'examples': 10.0}]
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedjax_core.files import FOLDER, close_to_others, write_whole

log = logging.getLogger("fedjax_core")

METRICS, EVENTS = "metrics.jsonl", "events"
_FIRST_LINES, _LINE_EVERY_SECONDS = 3, 30.0

Record = dict[str, Any]


class Log:
    """Writes and shows the records of a run of `rounds` rounds, after `done` of them. Use it in a `with`.

    `began`: the rounds behind the run's first state, which have no records. With `private` its files are for
    their owner alone; else as the umask says.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        rounds: int,
        done: int = 0,
        began: int = 0,
        progress: bool = True,
        private: bool = False,
    ) -> None:
        self.records: list[Record] = []
        self._private = private
        self._run_dir, self._done, self._began = run_dir, done, began
        self._file: TextIO | None = None
        self._events: _Events | None = None
        self._shown = (
            _Bar(rounds, done)
            if progress and sys.stderr is not None and sys.stderr.isatty()
            else _Lines(rounds)
            if progress
            else None
        )

    def __enter__(self) -> "Log":
        if self._run_dir is not None:
            path = self._run_dir / METRICS
            self.records = read_records(path, self._done)
            write_whole(path, "".join(map(_line, self.records)), private=self._private)
            self._file = open(path, "a", buffering=1)
            self._events = _Events(
                self._run_dir / EVENTS, forget=self._done + 1 if self._done else 0, private=self._private
            )
            here = self._done - self._began
            missing = here - sum(record["kind"] == "train" for record in self.records)
            if missing:
                log.warning(
                    "%s lacks %d of the %d rounds done: it was edited or damaged", path, missing, here
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing writes what is left, which on a full disk fails once more: what ended the `with` says so already.
        with (
            contextlib.suppress(OSError) if error else contextlib.nullcontext(),
            contextlib.ExitStack() as stack,
        ):
            for part in (self._file, self._events, self._shown):
                if part is not None:
                    stack.callback(part.close)

    def write(
        self,
        round: int,
        kind: Literal["train", "eval"],
        values: dict[str, float],
        lacked: Sequence[str] = (),
        examples: float | None = None,
    ) -> None:
        """Adds a record of the state after `round` rounds, the last of which went without the `lacked` sites.

        `examples`: their number for the speed shown, if the record is not to have it.
        """
        record = {"round": round, "kind": kind, **values, **({"lacked": " ".join(lacked)} if lacked else {})}
        self.records.append(record)
        if self._file is not None and self._events is not None:
            with _explained(self._file.name):
                self._file.write(_line(record))
                self._events.write(round, kind, values)
        if kind == "train" and self._shown is not None:
            examples = values.get("examples", 0.0) if examples is None else examples
            self._shown.update(round, values, examples, lacked)

    def sync(self) -> None:
        """Returns when all records are on the disk: called before a checkpoint, which must not know of rounds
        that the log lacks."""
        if self._file is not None and self._events is not None:
            with _explained(self._file.name):
                os.fsync(self._file.fileno())
                self._events.sync()


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {name} or the events beside it: {error}. The checkpoints are as they were: "
            "free some space and start again with the same run_dir.",
        ) from error


def read_records(path: Path, until: int | None = None) -> list[Record]:
    """The records in a metrics.jsonl up to round `until`; ends at a line that a crash cut short."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
                round = record["round"]
            except (ValueError, KeyError, TypeError):
                break
            if until is None or round <= until:
                records.append({name: math.nan if value is None else value for name, value in record.items()})
    return records


def _line(record: Record) -> str:
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(plain) + "\n"


class _Events:
    """TensorBoard's event file, whose steps from `forget` on replace those of earlier files in the folder.

    Not tensorboardX's SummaryWriter: its thread dies on a full disk, and the next scalar then waits for it
    forever."""

    def __init__(self, folder: Path, forget: int, private: bool = False) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # slow to import, and only needed here
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(FOLDER if private else 0o777, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._writer.write_event(
            Event(wall_time=time.time(), step=forget, session_log=SessionLog(status=SessionLog.START))
        )
        if private:
            close_to_others(folder)

    def write(self, round: int, kind: str, values: dict[str, float]) -> None:
        scalars = [
            self._summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()
        ]
        self._writer.write_event(
            self._event(wall_time=time.time(), step=round, summary=self._summary(value=scalars))
        )

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def how_far(values: dict[str, float]) -> str:
    """A round's loss, and the epsilon of all rounds so far, in words, as far as there are such.

    >>> how_far({"epsilon": 1.23456}), how_far({"loss": 0.5})
    ('epsilon 1.235', 'loss 0.5')
    """
    parts = (
        [f"loss {values.get('loss', math.nan):.4g}"] if "loss" in values or "epsilon" not in values else []
    )
    return ", ".join(parts + ([f"epsilon {values['epsilon']:.4g}"] if "epsilon" in values else []))


def without(lacked: Sequence[str]) -> str:
    """The sites that the last round lacked, in words that follow what is said of it."""
    return f", without {', '.join(lacked)}" if lacked else ""


class _Speed:
    """Measures examples a second from the first record on: the round before it holds the compilation."""

    def __init__(self) -> None:
        self._start, self._examples = 0.0, -1.0

    def update(self, examples: float) -> float:
        now = time.monotonic()
        if self._examples < 0:
            self._start, self._examples = now, 0.0
            return math.nan
        self._examples += examples
        return self._examples / max(now - self._start, 1e-9)


class _Bar:
    """The progress bar of a terminal."""

    def __init__(self, rounds: int, done: int) -> None:
        columns = (
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[far]}  {task.fields[speed]} examples/s{task.fields[without]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self._task = self._progress.add_task(
            "rounds", total=rounds, completed=done, far="loss -", speed="-", without=""
        )
        self._speed = _Speed()
        self._progress.start()

    def update(
        self, round: int, values: dict[str, float], examples: float, lacked: Sequence[str] = ()
    ) -> None:
        speed = self._speed.update(examples)
        shown = "-" if math.isnan(speed) else f"{speed:,.0f}"
        self._progress.update(
            self._task, completed=round, far=how_far(values), speed=shown, without=without(lacked)
        )

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """Lines on standard error where there is no terminal (a notebook, a pipe, nohup): the first rounds, then
    one now and then, the last.

    And one at once when other sites are missing than in the round before.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds, self._speed, self._last, self._shown = rounds, _Speed(), time.monotonic(), 0
        self._waiting: str | None = None
        self._lacked: list[str] = []

    def update(
        self, round: int, values: dict[str, float], examples: float, lacked: Sequence[str] = ()
    ) -> None:
        speed = self._speed.update(examples)
        shown = "" if math.isnan(speed) else f", {speed:,.0f} examples/s"
        self._waiting = f"round {round} of {self._rounds}: {how_far(values)}{shown}{without(lacked)}"
        news, self._lacked = list(lacked) != self._lacked, list(lacked)
        if news or self._shown < _FIRST_LINES or time.monotonic() - self._last >= _LINE_EVERY_SECONDS:
            self._show()

    def close(self) -> None:
        self._show()

    def _show(self) -> None:
        if self._waiting is not None:
            with contextlib.suppress(OSError, ValueError):  # the reader is gone
                print(self._waiting, file=sys.stderr, flush=True)
        self._waiting, self._last, self._shown = None, time.monotonic(), self._shown + 1
