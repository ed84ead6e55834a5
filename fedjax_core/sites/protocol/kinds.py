"""The kinds of requests that a site answers, and what both ends know of each: `KINDS`.

    train       train its part of an exchange: the report, as the uplink encodes it
    evaluate    sums of the metrics over its examples
    score       the same for any model, whatever the site's own state
    describe    the site's description, before the first round
    measure     sums of its columns, for common preprocessing
    statistics  the sums of a named statistic of its columns
    share, mask, confirm, reveal    its part of secure aggregation, after training; see secure.py
    part        a part of its last reply, if that was too large to travel at once
    announce    the parts that it lacks of a large request; if none, the answer to the request
    deliver     a confirmation that it has a part of the request

>>> KINDS["train"].reply, leaving("describe", departments=True)
('update', ('examples', 'data', 'clients'))
"""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax_core.sites.refusal import Refused

PARTS = "parts"
"""The kind of a reply that is the manifest of the real reply's parts."""

SHARE, MASK, CONFIRM, REVEAL = "share", "mask", "confirm", "reveal"
"""The kinds of requests of secure aggregation, in their order."""

PART, ANNOUNCE, LACKING, DELIVER, DELIVERED = "part", "announce", "lacking", "deliver", "delivered"
"""The kinds of requests for parts of messages, and of their replies; the reply to `part` is the bare part."""


class WrongKind(Refused):
    """The message is of another kind than expected, or of one that is not answered."""

    code = "wrong-kind"


class WrongConfig(Refused):
    """The sender runs another configuration."""

    code = "wrong-config"


class Kind(NamedTuple):
    """The properties of one kind of request, which both ends know."""

    reply: str
    """The kind of the reply."""
    leaving: tuple[str, ...]
    """The fields of the reply, beside the metrics, that the site's policy must allow in any study."""
    prepared: bool = False
    """Whether it uses the columns as the study prepares them, instead of the raw ones."""
    again: bool = False
    """Whether a repeat is accepted and answered anew: its contents are known by digests, so it changes
    nothing twice."""


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
    """The fields of the reply, beside the metrics, that the site's policy must allow.

    `stats`: the fields that the study's server reads site by site (`Study.stats`); `secure`: whether weights
    leave under masks."""
    if secure and kind == "train":
        return ("examples", "data")
    clients = ("clients",) if departments and kind in ("train", "describe") else ()
    return (*KINDS[kind].leaving, *clients, *(stats if kind == "train" else ()))
