"""The sites as a run sees them: how many, with how many examples, and what each says of itself before the first round."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.files import write_whole
from fedjax_core.sites.base import of_lines
from fedjax_core.sites.claims import dominating, doubtful
from fedjax_core.sites.collect import Collector, Paused
from fedjax_core.sites.request import WITHHELD, Record, Requests
from fedjax_core.sites.schema import difference

log = logging.getLogger("fedjax_core")


class Sites:
    """The sites as a run sees them: how many, with how many examples."""

    def __init__(self, ids: Sequence[str], about: Sequence[Mapping[str, Any]], departments: bool = False) -> None:
        self.ids = np.array(list(ids))
        self.sizes = np.array([one["examples"] for one in about], np.int64)
        self.clients: np.ndarray | None = np.array([one["clients"] for one in about], np.int64) if departments else None
        """[N] how many clients each site is, where departments are clients."""
        self.judged = np.array([one.get("held_out", one["examples"]) for one in about], np.int64)
        """[N] by how many examples models are judged at each site: those held out, or those trained on."""
        self.data = {name: str(one["data"]) for name, one in zip(ids, about, strict=True)}

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of all sites' names and fingerprints."""
        return hashlib.sha256(json.dumps(self.data).encode()).hexdigest()[:16]


def describe(
    collector: Collector,
    requests: Requests,
    path: Path | None,
    departments: bool = False,
    held_out: float = 0.0,
    *,
    agreed: Mapping[str, int] | None = None,
    record: Record = lambda who, what, number, about: None,
) -> list[dict[str, Any]]:
    """What every site says of itself: now, or, where it does not answer, as it said before, which is in the file at `path`.

    With `departments` it says how many it has, too; and where a share of its examples is `held_out`, how many these are.
    `agreed`: the largest number of examples of each site with which one was agreed on; a site that says more than is believed counts as
    one that has not said anything.
    """
    names = collector.names
    known = _read(path) if path is not None and path.exists() else {}
    heard = collector.collect(requests.write("describe", 0, to=names), 0, list(range(len(names))))
    now = {names[at]: dict(reply.header.fields) for at, reply in heard.items()}
    _say_withheld({name: of_lines(WITHHELD, about) for name, about in now.items()})
    for name, about in now.items():
        examples: Any = about.get("examples")
        if not (type(examples) is int and examples > 0 and all(type(about.get(field)) is str for field in ("data", "schema"))):
            raise ValueError(f"the description of {name} lacks examples, data or schema; install one version at all sites")
        clients: Any = about.get("clients")
        if departments and not (type(clients) is int and 0 < clients <= examples):
            raise ValueError(f"{name} does not say how many departments it has, each with an example; install one version at all sites")
        held: Any = about.get("held_out")
        if bool(held_out) != (held is not None):
            raise ValueError(
                f"{name} does not say how many examples it holds out, or does where nobody should; install one version at all sites"
            )
        if held_out and not (type(held) is int and 0 < held <= max(1.0, 2 * held_out / (1 - held_out)) * examples):
            raise ValueError(
                f"{name} says that it holds out {held!r} examples, of {examples} that it trains on: too many (or none) for a share of "
                f"{held_out:g}; its column for that must leave more to train on"
            )
    collector.hearing.reasons |= {names.index(name): why for name, why in believe(known, now, agreed or {}, record).items()}
    if missing := [name for name in names if name not in now and name not in known]:
        why = "".join(f". {name}: {reason}" for at, reason in collector.hearing.reasons.items() if (name := names[at]) in missing)
        raise Paused(
            f"{', '.join(missing)} did not say how many examples they have, so a run cannot begin; the audit log says why{why}"
        ) from (collector.failure(names.index(name) for name in missing))
    if departments and (odd := [name for name, about in known.items() if "clients" not in about]):
        raise ValueError(f"{path} is of a run in which {', '.join(odd)} had no departments: begin another one (run_name=)")
    found = {name: known[name] if name in known else now[name] for name in names}
    schemas = {**found, **now}
    if odd := [name for name in names if schemas[name]["schema"] != schemas[names[0]]["schema"]]:
        raise ValueError(
            f"all sites need the same columns in the same order, and {difference(names[0], schemas[names[0]], odd[0], schemas[odd[0]])}. "
            + (f"Others than {names[0]}'s are also those of {', '.join(odd[1:])}. " if odd[1:] else "")
            + "Convert the data of one, or have the study put features in order by their names (features=)"
        )
    if path is not None and found != known:
        write_whole(path, json.dumps(found))
    return [found[name] for name in names]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return {str(name): dict(about) for name, about in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{path}, what sites said of themselves before the first round, is damaged: restore it from its backup, or remove it, and "
            "they are asked anew"
        ) from None


def believe(known: dict[str, Any], now: dict[str, Any], agreed: Mapping[str, int], record: Record) -> dict[str, str]:
    """Takes out of what sites said, before and now, what is not believed: {name: why}. Says who has more than half of all examples."""
    claimed = {name: known[name]["examples"] if name in known else now[name]["examples"] for name in {**known, **now}}
    refused = doubtful(claimed, agreed)
    for name, reason in refused.items():
        log.warning("%s. Its description is set aside", reason)
        record(name, "refused", 0, {"code": "too-many-examples", "reason": reason})
        known.pop(name, None)
        now.pop(name, None)
        del claimed[name]
    if claimed and (most := dominating(claimed, agreed)) is not None:
        log.warning(
            "%s has %.0f %% of the examples of %d sites, so the model will be mostly its own; where that is meant, agree on a largest "
            "number with it and write `%s = %d` under [examples] of the roster",
            most[0], 100 * most[1], len(claimed), most[0], claimed[most[0]],
        )  # fmt: skip
    return refused


def _say_withheld(withheld: Mapping[str, Sequence[str]]) -> None:
    """Says at the start which metrics will lack sites, and which sites: {site: metrics}."""
    for metric in sorted({metric for metrics in withheld.values() for metric in metrics}):
        sites = [site for site, metrics in withheld.items() if metric in metrics]
        log.warning(
            "the metric %r will be without %s, whose policy does not let it leave: its staff may name it in leaving.fields",
            metric,
            "all sites" if len(sites) == len(withheld) else ", ".join(sites),
        )
