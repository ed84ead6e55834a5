"""Begins a run: from the newest checkpoint of its folder, a given state, or the first parameters."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjax_core.run import config
from fedjax_core.run.checkpoint import Checkpoints
from fedjax_core.run.encryption import load_key
from fedjax_core.run.lock import claim
from fedjax_core.run.monitor import Monitor
from fedjax_core.run.resume import resumable
from fedjax_core.run.rounds import Rounds
from fedjax_core.run.simulation import Simulation
from fedjax_core.run.snapshot import Saved, fingerprint
from fedjax_core.types import Key, Params


@contextlib.contextmanager
def opened(
    run_dir: str | os.PathLike[str] | None,
    keep: int,
    encrypt: str | os.PathLike[str] | None,
    *,
    private: bool,
) -> Iterator[Checkpoints | None]:
    """The checkpoints in `run_dir`, which is locked for this run meanwhile; None without one."""
    with contextlib.ExitStack() as stack:
        folder = None if run_dir is None else stack.enter_context(claim(run_dir, private=private))
        secret = checkpoint_key(encrypt, folder)
        yield (
            None
            if folder is None
            else stack.enter_context(Checkpoints(folder, keep, secret, private=private))
        )


def run_metadata(
    sim: Simulation, sampler: Any, judge: Monitor, key: Key, params: Params | None, given: Saved | None, *,
    rounds_per_dispatch: int, saves: bool,
) -> dict[str, Any]:  # fmt: skip
    """{"config": all that changes the answer, described if the run `saves`; "versions": those of the
    libraries and the device}."""
    configuration = {
        "settings": sim.settings,
        "clients": {"count": len(sim.clients), "fingerprint": sim.clients.fingerprint() if saves else None},
        "round": sim.round,
        "cohorts": sampler,
        "key": key,
        "params": params,
        "rounds_per_dispatch": rounds_per_dispatch,
        "evaluation": judge.settings,
        **({} if given is None else {"state": fingerprint(given.leaves, given.arrays)}),
    }
    return {"config": config.describe(configuration) if saves else {}, "versions": config.versions()}


def begin(
    run: Rounds,
    newest: Saved | None,
    given: Saved | None,
    key: Key,
    params: Params | None,
    *,
    rounds: int,
    override: bool,
) -> Any:
    """The state that the run goes on from; `run` takes over its bookkeeping. The `newest` checkpoint comes
    first, then the given state."""
    checkpoints, saved = run.checkpoints, newest
    if checkpoints is not None:
        saved, changed = resumable(checkpoints, newest, run.metadata, rounds=rounds, override=override)
        if saved is not None:
            _note(run.sim, checkpoints, saved, changed)
    state = run.sim.init(key, params)
    if checkpoints is not None and saved is not None:
        state = saved.place(state)
        run.resume(saved)
        run.needs = {round: metadata.get("needs") for round, metadata in checkpoints.metadata().items()}
    elif given is not None:
        state = given.place(state, "the given state", "bring its parts together by state._replace(...)")
    return state


def checkpoint_key(encrypt: str | os.PathLike[str] | None, folder: Path | None) -> bytes | None:
    """The key of the checkpoints, None where they are plain."""
    if encrypt is None:
        return None
    if folder is None:
        raise ValueError(
            f"encrypt={encrypt!r} encrypts checkpoints, but without a run_dir there are none: name one, or leave encrypt= out"
        )
    return load_key(encrypt, folder)


def _note(sim: Simulation, checkpoints: Checkpoints, saved: Saved, changed: list[str]) -> None:
    """Tells a backend with an audit log what the run goes on from, by its `note(what, round, fields)`."""
    note = getattr(sim, "note", None)
    if note is None:
        return
    for round, name, why in checkpoints.set_aside:
        note("checkpoint damaged", round, {"set_aside": name, "reason": why})
    note("resumed", saved.round, {f"changed.{i}": line for i, line in enumerate(changed)})
