"""Checks that a run may resume from a checkpoint: only with the configuration that wrote it.

Only what leaves the answer alone may change: more rounds, how often to save and to log, how much to keep, and
evaluation where it cannot end the run. Another version of Python, of a library or of this package, or another
device, is logged and not refused."""

import logging
from typing import Any

from fedjax_core.run import config
from fedjax_core.run.checkpoint import CheckpointError, Checkpoints
from fedjax_core.run.log import METRICS, read_records
from fedjax_core.run.snapshot import Saved

log = logging.getLogger("fedjax_core")


def resumable(
    checkpoints: Checkpoints, saved: Saved | None, metadata: dict[str, Any], *, rounds: int, override: bool
) -> tuple[Saved | None, list[str]]:
    """(`saved`, the newest checkpoint, to go on from, None for a fresh start; the changes since it was made,
    in words).

    `metadata` has this run's `config` (as `config.describe` gives it) and `versions`. Raises where it is not
    a checkpoint of this run, except for changes that `override` allows.
    """
    if saved is None:
        _check_unused(checkpoints)
        return None, []
    changed = _compare(checkpoints, saved, metadata, override)
    if saved.round > rounds:
        raise ValueError(
            f"run_dir {str(checkpoints.run_dir)!r} has {saved.round} rounds done already, but rounds={rounds}. "
            "Ask for at least as many, or choose another run_dir."
        )
    return saved, changed


def _check_unused(checkpoints: Checkpoints) -> None:
    """Raises where a fresh start would write over what is left of a run whose checkpoints are lost."""
    records = read_records(checkpoints.run_dir / METRICS)
    if records and records[-1]["round"] > 0:
        raise CheckpointError(
            f"{checkpoints.run_dir / METRICS} knows of {records[-1]['round']} rounds, but {checkpoints.folder} has no checkpoint. "
            "Bring the checkpoints back, or begin afresh in another run_dir; nothing was removed."
        )


def _compare(checkpoints: Checkpoints, saved: Saved, metadata: dict[str, Any], override: bool) -> list[str]:
    then, now = saved.about["config"], metadata["config"]
    versions = config.difference(saved.about["versions"], metadata["versions"])
    if versions:
        log.warning(
            "the run so far was made with other versions, so last bits may differ: %s", "; ".join(versions)
        )
    if _minor(saved.about["versions"]) != _minor(metadata["versions"]):
        then, now = config.without_code(then), config.without_code(now)
    changed = config.difference(then, now)
    if not changed:
        return []
    changed = changed[:20] + ([f"and {len(changed) - 20} more"] if len(changed) > 20 else [])
    shown = "\n  ".join(changed)
    if not override:
        raise ValueError(
            f"run_dir {str(checkpoints.run_dir)!r} holds a run with another configuration:\n  {shown}\n"
            "Choose another run_dir, or go on with the changed one by override=True."
        )
    log.warning(
        "going on from round %d with a changed configuration, as override=True asks:\n  %s",
        saved.round,
        shown,
    )
    return changed


def _minor(versions: dict[str, Any]) -> list[str]:
    return str(versions["python"]).split(".")[:2]
