"""The coordinator's process: `fit` over a `Federation` of the sites whose Ray nodes are up, from its last
checkpoint on.

    python -m fedjax_core.consortium.lead FOLDER 127.0.0.1:6379

Exits with 0 when `rounds` are done and result.json has every site's metrics; with 3 when it was interrupted
and has saved. It waits for absent sites and names them: its messages to people are the lines of its log that
begin with `SAYS`. It also ends when its standard input closes, as then nobody watches it any more.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from fedjax_core.consortium.setup import DEADLINE_SECONDS, Layout, StudyPlan
from fedjax_core.data import cohorts
from fedjax_core.evaluation import Evaluation
from fedjax_core.files import write_whole
from fedjax_core.run.fit import fit
from fedjax_core.run.history import History
from fedjax_core.sites.coordinator.absent import without_numbers
from fedjax_core.sites.federation import Federation, Paused, Rules
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import build
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.identity import Roster, SiteKey

T = TypeVar("T")

INTERRUPTED = 3
SAYS = "says: "
_PATIENCE_SECONDS, _AWAY_SECONDS = 3600.0, 2.0
"""Seconds to wait for sites while no round completes, and seconds between two attempts."""


def lead(folder: Layout, address: str | None) -> int:
    """Runs what is left of the plan over the Ray at this address; returns the exit code."""
    plan, home = StudyPlan.read(folder.plan), folder.coordinator
    study = build(plan.study, json.loads(plan.arguments))
    # each site reads all else from its own file
    files = [SiteFile(name=name, resources={name: 1.0}) for name in plan.sites]
    rules = Rules(
        quorum=plan.quorum or len(plan.sites),
        deadline_seconds=DEADLINE_SECONDS,
        train_seconds=plan.train_seconds or None,
    )
    roster = Roster.read(home / "roster.toml")
    federation = _patiently(lambda: Federation(
        study.round, files, batch_size=study.batch_size, epochs=study.epochs, steps=study.steps, seed=study.seed,
        epsilon=study.epsilon, prepare=study.prepare, departments=study.departments, features=study.features,
        held_out=study.held_out,
        rules=rules, folder=home, roster=roster, key=SiteKey.load(home / f"{COORDINATOR}.key"), address=address,
    ), lambda: 0)  # fmt: skip

    def done() -> int:
        return len(folder.rounds())

    def run() -> tuple[History, Evaluation | None]:
        history = fit(
            federation, plan.rounds, cohorts.everyone(len(plan.sites)), home / "run",
            key=jax.random.key(study.seed), checkpoint_every=plan.checkpoint_every, progress=False,
        )  # fmt: skip
        return history, None if history.stopped == "interrupted" else federation.evaluate(history.state)

    with federation:
        history, evaluation = _patiently(run, done)
        if evaluation is None:
            return INTERRUPTED
        clients = {metric: values.tolist() for metric, values in evaluation.clients.items()}
        result = {
            "rounds": int(history.state.round),
            "sizes": evaluation.sizes.tolist(),
            "on": evaluation.on,
            "pooled": evaluation.pooled,
            "sites": clients,
        }
        write_whole(home / "result.json", json.dumps(result))
    return 0


def _patiently(do: Callable[[], T], done: Callable[[], int]) -> T:
    """Returns `do()`, tried again while sites are away; nothing is lost, as a run goes on from its last
    checkpoint.

    Raises the last error once `done` has not changed for `_PATIENCE_SECONDS`.
    """
    last_text, since, before = "", time.monotonic(), done()
    _aloud.begin_anew()
    while True:
        try:
            return do()
        except Paused as paused:
            if done() != before:
                since, before = time.monotonic(), done()
                _aloud.begin_anew()
            _aloud.try_again()
            if time.monotonic() - since > _PATIENCE_SECONDS:
                raise
            if (text := without_numbers(str(paused))) != last_text:
                _say(f"waiting: {paused}")
            last_text = text
            time.sleep(_AWAY_SECONDS)


class _Aloud(logging.Handler):
    """Turns this process's warnings into messages to people; over repeated attempts only new ones."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets the messages so far: all that follow are new."""
        self._before, self._now = set[str](), set[str]()

    def try_again(self) -> None:
        """Marks the messages so far as said already."""
        self._before, self._now = self._before | self._now, set()

    def emit(self, record: logging.LogRecord) -> None:
        text = without_numbers(record.getMessage())
        if text not in self._before:
            self._now.add(text)
            _say(record.getMessage())


_aloud = _Aloud()


def _say(text: str) -> None:
    print(SAYS + " ".join(text.split()), file=sys.stderr, flush=True)


def _end_when_nobody_watches() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # at any moment, which a run survives


def main(folder: str, address: str) -> int:
    """The coordinator's process: runs `lead`, and exits with its code."""
    logging.getLogger("fedjax_core").addHandler(_aloud)
    threading.Thread(target=_end_when_nobody_watches, daemon=True).start()
    return lead(Layout(Path(folder)), address)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
