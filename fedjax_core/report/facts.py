"""The content of a run's folder as plain values for a report; what is missing is empty.

RUN_DIR          what `fit` was given as run_dir, or the folder of a consortium in a box
  metrics.jsonl  each round
  plan.json      how many rounds there are to be, and why the run stopped
  checkpoints/   configuration, versions, digests, privacy spent
  report.json    what the study noted (`note`)
audit/           of the coordinator, in RUN_DIR or beside it; `sites/NAME/` with a site's own where they are
on this machine"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedjax_core.files import write_whole
from fedjax_core.run.log import METRICS, Record, read_records
from fedjax_core.run.plan import Plan, read_plan
from fedjax_core.sites.audit import Entry, files, show
from fedjax_core.sites.wire.canonical import of_lines

NOTES = "report.json"
ALL = "all"
"""Stands for all sites together in the place of a site's name."""
FAULTS = (
    "refused",
    "declined",
    "missing",
    "paused",
    "lost",
    "left out",
    "set aside",
    "warned",
    "withdrew",
    "checkpoint damaged",
)
"""Kinds of audit entries that report a fault."""


@dataclass(frozen=True)
class Facts:
    """Everything that a report shows."""

    folder: Path
    records: list[Record] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """{what: its digest}: the checkpoint, the study at the sites, each site's data."""
    spent: Mapping[str, Any] = field(default_factory=dict)
    """The privacy spent: epsilon, delta, rounds, terms; empty where no account is kept."""
    left: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """{(site, kind of message): (messages, bytes of their tensors)} that left it."""
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{site: the names of what left it}, from its own log."""
    faults: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """{(who, what, why): times}."""
    seconds: float = math.nan
    """From the first to the last entry of the coordinator's log."""
    examples: Mapping[str, int] = field(default_factory=dict)
    """{site: examples that it reported}."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = ""
    """The name of what was run, as the configuration or the coordinator's log has it."""
    plan: Plan = field(default_factory=Plan)
    """The planned number of rounds, and why the run stopped."""

    @property
    def rounds(self) -> int:
        """The number of recorded rounds."""
        return max((record["round"] for record in self.records), default=0)

    @property
    def sites(self) -> list[str]:
        """The names of all sites that took part.

        The rows of `performance` may be methods, or hospitals that were never trained at: they count only
        where nothing else names a site.
        """
        named = [*self.notes.get("flow", {}), *self.examples, *(site for site, _ in self.left)]
        named = named or list(self.notes.get("performance", {}))
        return list(dict.fromkeys(name for name in named if name not in ("coordinator", ALL)))


def note(folder: str | Path, **entries: Any) -> None:
    """Adds to a run's folder what only the study knows, for its report; an existing name is replaced.

    `question`, `population`, `outcome`, `authors`, `limitations`, `intended_use`: text. `flow`: {site: {"rows
    in": n, "left out": {reason: n}, "people": n, "trained on": n, "held out": n}}, as far as it may be shown.
    `performance`: {site or "all": {metric: value or [value, low, high]}}; `subgroups`: {subgroup: the same}.
    `calibration`: {model or site: [[mean risk, share with the outcome, people], ...]}. `statistics`: {title:
    text of a table}. `privacy`: {"epsilon": number, "delta": number, "rounds": n, "of": whose}, where the run's
    own records have no account, as of DP-SGD. Raises ValueError for another name.
    """
    known = {
        "question", "population", "outcome", "authors", "limitations", "intended_use", "flow", "performance", "subgroups", "calibration",
        "statistics", "privacy",
    }  # fmt: skip
    if odd := set(entries) - known:
        raise ValueError(
            f"{sorted(odd)[0]!r} is nothing that a report says; there are {', '.join(sorted(known))}"
        )
    path = Path(folder) / NOTES
    before = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(before | entries, indent=1, default=_plain))


def gather(folder: str | Path) -> Facts:
    """Gathers the facts of a run's folder; raises ValueError where there is no run in it."""
    root = Path(folder)
    run = next(
        (one for one in (root, root / "run", root / "coordinator" / "run") if (one / METRICS).exists()), root
    )
    notes: dict[str, Any] = next(
        (json.loads((one / NOTES).read_text()) for one in (run, root) if (one / NOTES).exists()), {}
    )
    audit = next(
        (
            one
            for one in (root / "audit", run.parent / "audit", root / "coordinator" / "audit")
            if one.is_dir() and files(one)
        ),
        None,
    )
    if not (run / METRICS).exists() and not notes and audit is None:
        raise ValueError(
            f"{root} holds no run: neither {METRICS}, nor {NOTES}, nor a coordinator's audit log"
        )
    records = read_records(run / METRICS) if (run / METRICS).exists() else []
    metadata, digest = _checkpoint(run)
    entries = [] if audit is None else list(show(audit))
    own = {
        path.parent.parent.name if path.parent.name == "state" else path.parent.name: path
        for path in _own_logs(root, audit)
    }
    fields = {name: _names_left(path) for name, path in own.items()}
    site_facts = _site_facts(root, run)
    digests = ({"checkpoint": digest} if digest else {}) | _digests(entries)
    digests |= {
        f"data of {name}, under a secret of its own": str(metadata["data"])
        for name, metadata in site_facts.items()
        if "data" in metadata
    }
    return Facts(
        root, records, metadata.get("config", {}), metadata.get("versions", {}), digests,
        metadata.get("privacy") or _spent(records) or notes.get("privacy", {}),
        _left(entries), fields, _faults(entries), entries[-1].time - entries[0].time if entries else math.nan,
        {name: int(metadata["examples"]) for name, metadata in site_facts.items() if "examples" in metadata}, notes,
        str(metadata.get("config", {}).get("round.algorithm.name") or _algorithm(entries)), read_plan(run),
    )  # fmt: skip


def _checkpoint(run: Path) -> tuple[dict[str, Any], str]:
    """(metadata, digest) of the newest checkpoint that is neither encrypted nor damaged; empty without
    one."""
    for path in sorted((run / "checkpoints").glob("[0-9]*/checkpoint.json"), reverse=True):
        try:
            checkpoint = json.loads(path.read_bytes())
            return dict(checkpoint["body"]["about"]), str(checkpoint["digest"])
        except (ValueError, KeyError, TypeError):
            continue
    return {}, ""


def _own_logs(root: Path, coordinator: Path | None) -> Iterator[Path]:
    """The sites' audit logs on this machine, as of a consortium in a box or of a try."""
    for pattern in ("sites/*/state/audit", "sites/*/audit", "*/audit"):
        for path in sorted(root.glob(pattern)):
            if path != coordinator and path.parent.name not in ("coordinator", "run") and files(path):
                yield path


def _names_left(audit: Path) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for entry in show(audit, what="left"):
        names |= dict.fromkeys(of_lines("fields", entry.about))
    return tuple(sorted(names))


def _left(entries: list[Entry]) -> dict[tuple[str, str], tuple[int, int]]:
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in entries:
        if entry.what in ("update", "answered") and isinstance(entry.about.get("bytes"), int):
            kind = "update" if entry.what == "update" else str(entry.about.get("kind", ""))
            messages, size = totals.get((entry.who, kind), (0, 0))
            totals[entry.who, kind] = messages + 1, size + int(entry.about["bytes"])  # type: ignore[arg-type]
    return dict(sorted(totals.items()))


def _algorithm(entries: list[Entry]) -> str:
    return next(
        (str(entry.about["algorithm"]) for entry in reversed(entries) if "algorithm" in entry.about), ""
    )


def _faults(entries: list[Entry]) -> dict[tuple[str, str, str], int]:
    faults: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        if entry.what in FAULTS or (entry.what == "update" and entry.about.get("accepted") is False):
            what = "update set aside" if entry.what == "update" else entry.what
            code, reason = (
                entry.about.get("code"),
                str(entry.about.get("reason", entry.about.get("missing", ""))),
            )
            faults[entry.who, what, f"{code}: {reason}"[:200] if code else reason[:200]] += 1
    return dict(faults)


def _digests(entries: list[Entry]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for entry in entries:
        if entry.what == "asked" and "config" in entry.about:
            digests["study, at every site"] = str(entry.about["config"])
    return digests


def _site_facts(root: Path, run: Path) -> dict[str, dict[str, Any]]:
    """{site: its description of itself before the first round, or when it joined}, as the coordinator keeps
    it beside its log."""
    by_site: dict[str, dict[str, Any]] = {}
    for folder in dict.fromkeys((root, run.parent, root / "coordinator")):
        for path in sorted(folder.glob("*-sites.json")):
            try:
                by_site |= {
                    str(name): dict(metadata) for name, metadata in json.loads(path.read_text()).items()
                }
            except (ValueError, TypeError, AttributeError):
                continue
    return by_site


def _spent(records: list[Record]) -> dict[str, Any]:
    last = next((record for record in reversed(records) if "epsilon" in record), None)
    return {} if last is None else {"epsilon": last["epsilon"], "rounds": last["round"]}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "_asdict"):
        return value._asdict()
    return str(value)
