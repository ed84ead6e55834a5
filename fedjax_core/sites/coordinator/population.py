"""`Population`: the sites of a run by their descriptions, including sites that join later.

A run begins with the sites that are there, or that described themselves before (`RUN-sites.json`), if these
are enough for a round. A site that is away joins in the first round after it has described itself
(`Joining`); until then the rounds go on without it, and it is named."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.files import write_whole
from fedjax_core.sites.coordinator.absent import with_reasons
from fedjax_core.sites.coordinator.claims import dominating, doubtful
from fedjax_core.sites.coordinator.collect import Collector, Paused
from fedjax_core.sites.protocol.request import WITHHELD, Record, Requests
from fedjax_core.sites.protocol.schema import IN_ANOTHER_ORDER, difference, features_of
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import of_lines
from fedjax_core.sites.wire.envelope import Header, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.transport import Transport

_ANSWER_SECONDS, _START_SECONDS, _AGAIN_SECONDS = 10.0, 60.0, 30.0
"""How long a site has to describe itself if the others are enough and if they are not, and when a site that
was away is asked again."""

_JOINED = "joined"
"""The mark, in the file, of a site that was not there when the run began."""

log = logging.getLogger("fedjax_core")


class Population:
    """The sites of a run, with their numbers of examples."""

    def __init__(
        self, ids: Sequence[str], descriptions: Mapping[str, Mapping[str, Any]], departments: bool = False
    ) -> None:
        """`descriptions`: {name: what the site says of itself}, for those that have."""
        self.ids = np.array(list(ids))
        self.sizes = np.zeros(len(self.ids), np.int64)
        """[N] examples of each site; 0 before its description."""
        self.clients: np.ndarray | None = np.zeros(len(self.ids), np.int64) if departments else None
        """[N] the number of clients of each site, if departments are clients."""
        self.judged = np.zeros(len(self.ids), np.int64)
        """[N] the number of examples that each site evaluates on: those held out, or those trained on."""
        self.withheld: dict[int, tuple[str, ...]] = {}
        """The metrics that the policies of sites do not let leave, by the sites' positions."""
        self.data: dict[str, str] = {}
        """The fingerprint of each site's data, by its name."""
        self.features: dict[str, list[str]] = {}
        """{column: names of its features}, if sites name them."""
        self._late: set[str] = set()
        for position, name in enumerate(ids):
            if name in descriptions:
                self.add(position, name, descriptions[name])

    def add(self, position: int, name: str, description: Mapping[str, Any]) -> None:
        """Adds the site at this position, with its description."""
        self.sizes[position], self.data[name] = description["examples"], str(description["data"])
        self.features = self.features or features_of(description)
        self.judged[position] = description.get("held_out", description["examples"])
        if self.clients is not None:
            self.clients[position] = description["clients"]
        self.withheld[position] = tuple(of_lines(WITHHELD, description))
        if description.get(_JOINED):
            self._late.add(name)

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """16 hexadecimal digits for the names and data of the sites that were there when the run began."""
        first = {name: data for name, data in self.data.items() if name not in self._late}
        return hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]


def describe(
    collector: Collector,
    requests: Requests,
    path: Path | None,
    departments: bool = False,
    held_out: float = 0.0,
    *,
    agreed: Mapping[str, int] | None = None,
    record: Record = lambda party, what, number, details: None,
) -> dict[str, dict[str, Any]]:
    """{name: what the site says of itself}, now, or before as in the file at `path` if it does not answer.

    A site that never described itself, or whose number of examples is not believed, is missing, and
    `collector.unknown` has the reason. Raises `Paused` if the others would be too few for a round. With
    `departments` a site also says how many it has; with a share `held_out`, how many examples these are.
    `agreed`: the largest number of examples of each site with an agreement.
    """
    names = collector.names
    known = _read(path) if path is not None and path.exists() else {}
    everyone = list(range(len(names)))
    request = requests.write("describe", 0, to=names)
    replies = collector.collect(
        request, 0, everyone, seconds=_START_SECONDS, brief=everyone, least=_ANSWER_SECONDS
    )
    now = {names[position]: dict(reply.header.fields) for position, reply in replies.items()}
    _say_withheld({name: of_lines(WITHHELD, description) for name, description in now.items()})
    for name, description in now.items():
        _check(name, description, departments, held_out)
    collector.replies.reasons |= {
        names.index(name): why for name, why in believe(known, now, agreed or {}, record).items()
    }
    for position, name in enumerate(names):
        if position not in replies and name in collector.away:
            collector.replies.reasons[position] = collector.away[name]
    here = [position for position in everyone if names[position] in now or names[position] in known]
    unknown = {
        position: collector.replies.reasons.get(position, "no reply")
        for position in everyone
        if position not in here
    }
    if not here or not collector.quorate(everyone, here):
        raise Paused(
            f"a run cannot begin before {collector.rules.needed(len(names))} of its {len(names)} sites have said how many examples they "
            f"have, and {len(here)} did. {with_reasons({names[position]: why for position, why in unknown.items()})}"
        ) from collector.failure(unknown)
    collector.absent.tell(
        "the run",
        everyone,
        [position for position in here if names[position] in now],
        collector.replies.reasons,
    )
    collector.unknown |= unknown
    if departments and (odd := [name for name, description in known.items() if "clients" not in description]):
        raise ValueError(
            f"{path} is of a run in which {', '.join(odd)} had no departments: begin another one (run_name=)"
        )
    began = bool(known)
    descriptions = {
        names[position]: known.get(names[position])
        or now[names[position]] | ({_JOINED: True} if began else {})
        for position in here
    }
    schemas, first = {**descriptions, **now}, names[here[0]]
    if odd := [name for name in schemas if schemas[name]["schema"] != schemas[first]["schema"]]:
        raise ValueError(
            _other_columns(first, schemas[first], odd[0], schemas[odd[0]])
            + (f" Others than {first}'s are also those of {', '.join(odd[1:])}." if odd[1:] else "")
        )
    if path is not None and descriptions != known:
        write_whole(path, json.dumps(descriptions))
    return descriptions


def _other_columns(one: str, fields: Mapping[str, Any], other: str, other_fields: Mapping[str, Any]) -> str:
    """The error text for two sites with different columns: the first difference, and the way out."""
    odd = str(difference(one, fields, other, other_fields))
    way_out = (
        "Have the study put them in order by their names (features=)"
        if odd.endswith(IN_ANOTHER_ORDER)
        else "Convert the data of one"
    )
    return f"all sites need the same columns in the same order, and {odd}. {way_out}."


def _check(name: str, description: Mapping[str, Any], departments: bool, held_out: float) -> None:
    """Raises if a site's description lacks something."""
    examples: Any = description.get("examples")
    if not (
        type(examples) is int
        and examples > 0
        and all(type(description.get(field)) is str for field in ("data", "schema"))
    ):
        raise ValueError(
            f"the description of {name} lacks examples, data or schema; install one version at all sites"
        )
    clients: Any = description.get("clients")
    if departments and not (type(clients) is int and 0 < clients <= examples):
        raise ValueError(
            f"{name} does not say how many departments it has, each with an example; install one version at all sites"
        )
    held: Any = description.get("held_out")
    if bool(held_out) != (held is not None):
        raise ValueError(
            f"{name} does not say how many examples it holds out, or does where nobody should; install one version at all sites"
        )
    if held_out and not (
        type(held) is int and 0 < held <= max(1.0, 2 * held_out / (1 - held_out)) * examples
    ):
        raise ValueError(
            f"{name} says that it holds out {held!r} examples, of {examples} that it trains on: too many (or none) for a share of "
            f"{held_out:g}; its column for that must leave more to train on"
        )


class Joining:
    """Adds the sites that were away when the run began, once they describe themselves; never waits."""

    def __init__(
        self, collector: Collector, requests: Requests, sites: Population, descriptions: dict[str, dict[str, Any]], path: Path | None,
        departments: bool, held_out: float, agreed: Mapping[str, int], record: Record,
    ) -> None:  # fmt: skip
        """`descriptions`: {name: what the site says of itself}, for those that have."""
        self._collector, self._requests, self._sites, self._descriptions, self._path = (
            collector,
            requests,
            sites,
            descriptions,
            path,
        )
        self._departments, self._held_out, self._agreed, self._record = departments, held_out, agreed, record
        # position -> (future reply, header of the request, time of asking)
        self._pending: dict[int, tuple[Future[Any], Header, float]] = {}

    def look(self, number: int) -> None:
        """Before round `number`: asks unknown sites for descriptions, and adds those that have answered."""
        for position in list(self._collector.unknown):
            name = self._collector.names[position]
            if position in self._pending:
                future, header, when = self._pending[position]
                if self._collector.done(future):
                    del self._pending[position]
                    reply = self._collector.replies.accept(future, position, number, header)
                    if reply is not None and reply.header.kind != "refusal":
                        self._take(position, name, dict(reply.header.fields), number)
                    elif position in self._collector.replies.reasons:
                        self._collector.unknown[position] = self._collector.replies.reasons[position]
                elif time.monotonic() - when > _AGAIN_SECONDS:
                    del self._pending[position]
                    self._collector.leave(future, position)
            if position in self._collector.unknown and position not in self._pending:
                request = self._requests.write("describe", number, to=[name])
                self._pending[position] = (
                    self._collector.ask(position, request, None),
                    header_of(request),
                    time.monotonic(),
                )

    def _take(self, position: int, name: str, description: dict[str, Any], number: int) -> None:
        """Adds the site, or rejects its description with the reason."""
        claimed = {one: fields["examples"] for one, fields in self._descriptions.items()}
        try:
            _check(name, description, self._departments, self._held_out)
            if (
                doubt := doubtful({**claimed, name: description["examples"]}, self._agreed).get(name)
            ) is not None:
                raise Unfit(doubt)
            first, reference = next(iter(self._descriptions.items()))
            if description["schema"] != reference["schema"]:
                raise Unfit(_other_columns(first, reference, name, description))
        except ValueError as error:
            self._collector.unknown[position] = str(error)
            self._record(name, "refused", number, {"code": Unfit.code, "reason": str(error)})
            return
        self._descriptions[name] = description | {_JOINED: True}
        if self._path is not None:
            write_whole(self._path, json.dumps(self._descriptions))
        self._sites.add(position, name, self._descriptions[name])
        del self._collector.unknown[position]
        self._collector.replies.reasons.pop(position, None)
        self._record(
            name, "joined", number, {"examples": description["examples"], "data": description["data"]}
        )


class Unfit(Refused):
    """The description of a site that joins later is not believed, or does not fit the run."""

    code = "unfit"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
        return {str(name): dict(description) for name, description in document.items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{path}, what sites said of themselves before the first round, is damaged: restore it from its backup, or remove it, and "
            "they are asked anew"
        ) from None


def believe(
    known: dict[str, Any], now: dict[str, Any], agreed: Mapping[str, int], record: Record
) -> dict[str, str]:
    """Removes the descriptions, former and new, that are not believed: {name: reason}. Warns of a site with
    over half of all examples."""
    claimed = {
        name: known[name]["examples"] if name in known else now[name]["examples"] for name in {**known, **now}
    }
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
    """Logs which metrics will lack which sites; `withheld`: {site: metrics}."""
    for metric in sorted({metric for metrics in withheld.values() for metric in metrics}):
        sites = [site for site, metrics in withheld.items() if metric in metrics]
        log.warning(
            "the metric %r will be without %s, whose policy does not let it leave: its staff may name it in leaving.fields",
            metric,
            "all sites" if len(sites) == len(withheld) else ", ".join(sites),
        )


def check_keys(names: Sequence[str], roster: Roster, transport: Transport) -> None:
    """Raises if the key of a site is unknown: it is in no roster, and the site is not there to send it."""
    if missing := [name for name in names if name not in roster.keys]:
        if away := getattr(transport, "away", {}):
            raise Paused(
                "without a roster every site has to be there when the coordinator first meets them, as it then learns their keys; "
                f"give roster=, or start again once they are. {with_reasons(away)}"
            )
        raise ValueError(
            f"the roster has no key of {missing}: add the line that `fedjax-core keys show` prints at the site"
        )
