"""The coordinator's process: `fit` over a `Federation` of the sites whose Ray nodes are up, from its last checkpoint on.

    python -m fedjax_core.consortium.lead FOLDER 127.0.0.1:6379

Ends with 0 when `rounds` are done, and result.json says how every site fares; with 3 when it was interrupted, and has saved.
It also ends when its standard input does, as then nobody watches it any more.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax

from fedjax_core.consortium.setup import DEADLINE_SECONDS, Folder, Plan
from fedjax_core.data import cohorts
from fedjax_core.files import write_whole
from fedjax_core.run.fit import fit
from fedjax_core.sites.coordinator import Federation, Paused, Rules
from fedjax_core.sites.identity import Roster, SiteKey
from fedjax_core.sites.study import build
from fedjax_core.sites.wire import COORDINATOR

INTERRUPTED = 3
_PATIENCE, _AWAY_SECONDS = 60, 2.0


def lead(folder: Folder, address: str | None) -> int:
    """Runs what is left of the plan over the Ray at this address; returns the exit code."""
    plan, home = Plan.read(folder.plan), folder.coordinator
    study = build(plan.study, json.loads(plan.arguments))
    files = [folder.site(name) / "site.toml" for name in plan.sites]
    rules = Rules(quorum=plan.quorum or None, deadline_seconds=DEADLINE_SECONDS, train_seconds=plan.train_seconds or None)
    roster = Roster.read(home / "roster.toml")
    with Federation(
        study.round, files, batch_size=study.batch_size, epochs=study.epochs, steps=study.steps, seed=study.seed, clip=study.clip,
        noise=study.noise, epsilon=study.epsilon, prepare=study.prepare, departments=study.departments, features=study.features,
        held_out=study.held_out,
        rules=rules, folder=home, roster=roster, key=SiteKey.load(home / f"{COORDINATOR}.key"), address=address,
    ) as federation:  # fmt: skip
        for attempt in itertools.count(1):
            try:
                history = fit(
                    federation, plan.rounds, cohorts.everyone(len(plan.sites)), home / "run",
                    key=jax.random.key(study.seed), checkpoint_every=plan.checkpoint_every, progress=False,
                )  # fmt: skip
                if history.stopped == "interrupted":
                    return INTERRUPTED
                found = federation.evaluate(history.state)
                break
            except Paused as paused:  # sites are away: nothing is lost by asking again, from the last checkpoint on
                if attempt == _PATIENCE:
                    raise
                print(paused, file=sys.stderr, flush=True)
                time.sleep(_AWAY_SECONDS)
        clients = {metric: values.tolist() for metric, values in found.clients.items()}
        about = {
            "rounds": int(history.state.round),
            "sizes": found.sizes.tolist(),
            "on": found.on,
            "pooled": found.pooled,
            "sites": clients,
        }
        write_whole(home / "result.json", json.dumps(about))
    return 0


def _end_when_nobody_watches() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # at any moment, which a run survives


def main(folder: str, address: str) -> int:
    """The process."""
    threading.Thread(target=_end_when_nobody_watches, daemon=True).start()
    return lead(Folder(Path(folder)), address)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
