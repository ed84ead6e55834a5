"""The kinds of requests that a site answers, and what both ends know of each: `KINDS`.

    train       its part of an exchange: what goes up, in the form that the uplink gives it
    evaluate    sums of the metrics over its examples
    score       the same of any model, whatever the site keeps itself
    describe    what the coordinator has to know before the first round
    measure     sums of its columns, for preprocessing that is one for all sites
    statistics  the sums of a statistic that is named, of its columns
    share, mask, confirm, reveal    its part of secure aggregation, once it was asked to train; see secure.py
    part        a part of its last reply that was too large to travel at once
    announce    which parts it lacks of a request that is too large to travel at once; where none, the answer to that
    deliver     that it has a part of it

>>> KINDS["train"].reply, leaving("describe", departments=True)
('update', ('examples', 'data', 'clients'))
"""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax_core.sites.refusal import Refused

PARTS = "parts"
"""The kind of a reply that says what the parts of the true reply are."""

SHARE, MASK, CONFIRM, REVEAL = "share", "mask", "confirm", "reveal"
"""The kinds of requests of secure aggregation, in their order."""

PART, ANNOUNCE, LACKING, DELIVER, DELIVERED = "part", "announce", "lacking", "deliver", "delivered"
"""The kinds of requests for parts of messages, and of their replies; `part` is answered by the part as it
is."""


class WrongKind(Refused):
    """The message is of another kind than what is expected, or answered."""

    code = "wrong-kind"


class WrongConfig(Refused):
    """The sender runs another configuration."""

    code = "wrong-config"


class Kind(NamedTuple):
    """What both ends know of one kind of request."""

    reply: str
    """The kind of the reply."""
    leaving: tuple[str, ...]
    """The fields of the reply that the site's policy is asked for, beside the metrics, whatever the study."""
    prepared: bool = False
    """Whether it is of the columns as the study prepares them, and not as they lie there."""
    again: bool = False
    """Whether it may be heard again, and is then answered anew: what it brings is known by digests, and
    changes nothing twice."""


KINDS: Mapping[str, Kind] = {
    "train": Kind("update", ("examples", "data", "weight"), prepared=True),
    "evaluate": Kind("metrics", ("examples",), prepared=True),
    "score": Kind("scores", ("examples",), prepared=True),
    "describe": Kind("description", ("examples", "data")),
    "measure": Kind("sums", ("examples",)),
    "statistics": Kind("statistic", ("examples", "statistics")),
    SHARE: Kind("shared", ()),
    MASK: Kind("masked", ()),
    CONFIRM: Kind("confirmed", ()),
    REVEAL: Kind("revealed", ()),
    PART: Kind(PART, ()),
    ANNOUNCE: Kind(LACKING, (), again=True),
    DELIVER: Kind(DELIVERED, (), again=True),
}


def leaving(
    kind: str, *, departments: bool, stats: tuple[str, ...] = (), secure: bool = False
) -> tuple[str, ...]:
    """The fields of the reply to such a request that the site's policy is asked for, beside the metrics.

    `stats`: what the server of the study reads of each site by itself (`Study.stats`); `secure`: whether
    weights leave under masks."""
    if secure and kind == "train":
        return ("examples", "data")
    clients = ("clients",) if departments and kind in ("train", "describe") else ()
    return (*KINDS[kind].leaving, *clients, *(stats if kind == "train" else ()))
