"""`Answered`: the record of answered questions, to count answers and allow one model a round.

    the same question again    the same answer, which discloses nothing new: it is not counted
    a new one                  counted; refused beyond the policy's number a day, or for an excluded model

With `evaluation.models = "sent"` a site works only on models that it was sent in training or helped to make:

    train       one model a round and exchange; rounds go on, or go back to an answered one with the same bits
    evaluate    a model sent in training; or a newer one, one a round, and at most `UNTRAINED` of these before the
                site trains again
    score       a model that it was sent before, to train or to evaluate

A coordinator that begins anew shows that by asking for the site's description: the rounds of its run may then
begin again anywhere, and new questions there are counted again. A site cannot tell a model that sites made
together from one that its coordinator made up: only the number of answers limits the second kind.

>>> answered, policy = Answered(None), Policy("charite")
>>> first, other = Question("train", "run", 0, 0, digest="aa", model="a"), Question("train", "run", 0, 0, digest="bb", model="b")
>>> answered.objection(first, policy), answered.add(first)
(None, True)
>>> answered.objection(first, policy), answered.add(first)  # a reply that was lost
(None, False)
>>> answered.objection(other, policy)[0], answered.objection(Question("score", "run", 1, 0, digest="b", model="b"), policy)[0]
('another-model', 'unsent-model')
"""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_core.files import opener, write_whole
from fedjax_core.sites.policy.policy import Policy
from fedjax_core.sites.wire.canonical import dumps

UNTRAINED = 32
"""How many models newer than its last trained one a site evaluates before it trains again; rounds without the
site are normal."""

ALL = -1
"""The `steps` of an answer that used all steps, or has none."""

_LAST = 1024  # how many questions, and models, are remembered
_RUNS = 256
_NOWHERE = (-1, -1, -1)  # round and exchange trained last, round evaluated last


class Question(NamedTuple):
    """A request, reduced to what its answer depends on."""

    kind: str
    run: str
    round: int
    exchange: int
    digest: str
    """The digest of everything in the request that the answer depends on."""
    model: str = ""
    """The digest of its model, with the parameters of preprocessing; empty if the model cannot be told from
    the rest."""
    data: str = ""
    """The fingerprint of the site's data."""

    @property
    def place(self) -> str:
        """The question's place in a run; for questions outside of runs, the question itself."""
        if self.kind == "train":
            return f"train/{self.run}/{self.round}/{self.exchange}"
        return (
            f"evaluate/{self.run}/{self.round}" if self.kind == "evaluate" else f"{self.kind}/{self.digest}"
        )


class Answered:
    """The answers of one site in all runs, in `answered.jsonl` in its folder, or in memory."""

    def __init__(self, folder: Path | None) -> None:
        """Raises ValueError if the file is damaged."""
        self._path = None if folder is None else folder / "answered.jsonl"
        self._known: dict[str, list[Any]] = {}  # place -> digest, fingerprint of the data, steps
        self._models: dict[str, None] = {}
        self._runs: dict[str, tuple[int, int, int]] = {}
        self._day, self._updates_today, self._others_today, self._updates, self._untrained = "", 0, 0, 0, 0
        self._lines = 0
        self._descriptor: int | None = None  # of the file, kept open: opening it takes longer than a write
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def close(self) -> None:
        """Closes the file; the next answer opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def knows(self, question: Question) -> bool:
        """Whether exactly this question was answered on the same data, if only with a refusal."""
        return self._known.get(question.place, ())[:2] == [question.digest, question.data]

    def steps(self, question: Question) -> int:
        """The steps of the answer: `ALL`, or a count under a time limit; 0 if it was a refusal."""
        return int(self._known[question.place][2]) if self.knows(question) else 0

    def objection(self, question: Question, policy: Policy) -> tuple[str, str] | None:
        """(code, reason) why the policy forbids an answer; None if it allows one."""
        if self.knows(question):
            return None
        if policy.evaluation.models == "sent" and (objection := self._unknown_model(question)) is not None:
            return objection
        caps, today = policy.caps, self._day == _today()
        if question.kind != "train":
            if today and self._others_today >= policy.evaluation.per_day:
                return (
                    "evaluations",
                    f"has given the {policy.evaluation.per_day} evaluations of a day (evaluation.per_day)",
                )
            return None
        if caps.updates_per_day is not None and today and self._updates_today >= caps.updates_per_day:
            return (
                "updates",
                f"has given the {caps.updates_per_day} updates of a day, and goes on tomorrow (caps.updates_per_day)",
            )
        if caps.updates is not None and self._updates >= caps.updates:
            return "updates", f"gives no more than {caps.updates} updates in all, which it has (caps.updates)"
        return None

    def add(self, question: Question, steps: int = ALL) -> bool:
        """Counts an answer of so many steps (0: a refusal) before it leaves; returns whether it is new."""
        return self._keep([*question, steps, _today()])

    def begins_anew(self, run: str) -> None:
        """Notes that the coordinator of the run began anew: its rounds may begin again anywhere."""
        if run in self._runs:
            self._keep(["anew", run])

    def _unknown_model(self, question: Question) -> tuple[str, str] | None:
        round, exchange, evaluated = self._runs.get(question.run, _NOWHERE)
        before = self._known.get(question.place, [""])[0]
        another = (
            "another-model",
            f"was asked with another model in round {question.round} of {question.run!r}, and answers for one model a round: go on with "
            "the next round, or begin another run (run_name=)",
        )
        if question.kind == "train":
            evaluated_digest = (
                self._known.get(question._replace(kind="evaluate").place, [""])[0]
                if evaluated >= question.round
                else ""
            )
            odd = (
                question.exchange == 0
                and question.model
                and evaluated_digest
                and evaluated_digest != question.model
            )
            return (
                another
                if odd
                or not ((question.round, question.exchange) > (round, exchange) or before == question.digest)
                else None
            )
        if question.kind == "evaluate":
            if before == question.digest or (question.model and question.model in self._models):
                return None
            if question.round <= max(round, evaluated):
                return another
            if self._untrained >= UNTRAINED:
                reason = f"has evaluated {UNTRAINED} models since it last trained: it evaluates more once it has trained again"
                return "untrained", f'{reason}, or where its policy says evaluation.models = "any"'
        if question.kind == "score" and question.model not in self._models:
            return (
                "unsent-model",
                'was never sent this model in training, and evaluates no other: evaluation.models = "any" in its policy lets it',
            )
        return None

    def _keep(self, line: list[Any]) -> bool:
        """Applies a line, and writes it if it is new or a run has gone back; returns whether it is new."""
        before = self._runs.get(line[1])
        new = self._apply(line)
        if self._path is not None and (new or before != self._runs.get(line[1])):
            if self._lines >= 2 * _LAST:
                self.close()
                self._lines = 1
                write_whole(
                    self._path, json.dumps({name: getattr(self, f"_{name}") for name in _STATE}) + "\n"
                )
            else:
                self._lines += 1
                self._append(self._path, dumps(line) + b"\n")
        return new

    def _append(self, path: Path, line: bytes) -> None:
        """Appends the line, whole or not at all. It survives the process; there is no wait for the disk."""
        if self._descriptor is None:
            self._descriptor = opener(os.fspath(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        written = os.write(self._descriptor, line)
        if written < len(line):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(f"could not write to {path}: is the disk full? Nothing may leave uncounted.")

    def _apply(self, line: list[Any]) -> bool:
        if line[0] == "anew":
            self._runs.pop(line[1], None)
            return True
        *values, steps, day = line
        question = Question(*values)
        place, answer = question.place, [question.digest, question.data, steps]
        new = self._known.get(place) != answer
        if day != self._day:
            self._day, self._updates_today, self._others_today = day, 0, 0
        round, exchange, evaluated = self._runs.pop(question.run, _NOWHERE)
        if question.kind == "train":
            self._updates_today, self._updates = self._updates_today + new, self._updates + new
            self._untrained = 0 if new and steps else self._untrained
            round, exchange, evaluated = question.round, question.exchange, min(evaluated, question.round)
        else:
            self._others_today += new
        if question.kind == "evaluate":
            self._untrained += new
            evaluated = max(evaluated, question.round)
        self._runs[question.run] = round, exchange, evaluated
        self._known.pop(place, None)
        self._known[place] = answer
        if question.model and question.kind != "score" and steps:
            self._models.pop(question.model, None)
            self._models[question.model] = None
        for kept, most in ((self._known, _LAST), (self._models, _LAST), (self._runs, _RUNS)):
            while len(kept) > most:
                del kept[next(iter(kept))]
        return new

    def _read(self, path: Path) -> None:
        *lines, torn = path.read_bytes().split(b"\n")
        try:
            for line in lines:
                record = json.loads(line)
                if isinstance(record, dict):
                    for name in _STATE:
                        setattr(self, f"_{name}", record[name])
                    self._runs = {run: tuple(place) for run, place in record["runs"].items()}
                else:
                    self._apply(record)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ValueError(
                f"{path}, which has what this site answered, is damaged: restore it from its backup, or remove it; it then begins to count "
                "again, and knows no model that it was sent before"
            ) from None
        self._lines = len(lines)
        if torn:  # a line torn by a crash
            os.truncate(path, path.stat().st_size - len(torn))


_STATE = ("known", "models", "runs", "day", "updates_today", "others_today", "updates", "untrained")


def _today() -> str:
    return str(int(time.time() // 86400))
