"""Validates authentic updates: each is accepted, or rejected with a reason, and never stops the round.

A signature says who sent the numbers, not that they are any good: hospitals have sent NaN, another model's
shapes, the last round's update, the weight of all patients there are. Cheap checks come first, and the first
that fails is the reason. Reasons name what was expected, never the numbers received.

>>> import numpy as np
>>> from fedjax_core.sites.wire.trees import leaf_specs
>>> kinds = leaf_specs({"w": np.ones(2)})
>>> expected = ExpectedUpdate(run="heart-1", round=3, exchange=0, config="ab12", kinds=kinds, data={"charite": "f00d"},
...                           max_weight=1e6, max_norm=10.0)
>>> header = Header(kind="update", run="heart-1", round=3, exchange=0, sender="charite", recipient="coordinator", sequence=17,
...                 created_unix_ms=0, config="ab12", fields={"weight": 303.0, "examples": 303, "data": "f00d"})
>>> validate(Envelope(header, {"['w']": np.array([3.0, 4.0])}), expected)
Verdict(accepted=True, code='accepted', reason='', norm=5.0)
>>> validate(Envelope(header, {"['w']": np.array([3.0, np.nan])}), expected).code
'not-finite'
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fedjax_core.sites.protocol.kinds import WrongConfig, WrongKind
from fedjax_core.sites.protocol.report import PARTIAL
from fedjax_core.sites.refusal import Refused, shown
from fedjax_core.sites.wire.envelope import Envelope, Header
from fedjax_core.sites.wire.replay import WrongRound, WrongRun
from fedjax_core.sites.wire.tensors import measure_update
from fedjax_core.sites.wire.trees import LeafSpec, check_specs


class WrongExchange(Refused):
    """The update belongs to another exchange of the round."""

    code = "wrong-exchange"


class WrongModel(Refused):
    """The update was computed from another broadcast than this round's."""

    code = "wrong-model"


class BadField(Refused):
    """The header lacks a field of an update, or has it in another type."""

    code = "bad-field"


class BadWeight(Refused):
    """The weight is negative, not finite or out of bounds."""

    code = "bad-weight"


class TooManyExamples(Refused):
    """The update claims more examples than its site said to have."""

    code = "too-many-examples"


class BadSteps(Refused):
    """An update under a time limit does not say how much work was done, or says something impossible."""

    code = "bad-steps"


class BadStats(Refused):
    """A number that the server reads site by site differs from what the site's examples and steps give."""

    code = "bad-stats"


class WrongClients(Refused):
    """The report is of another number of clients than the site said to have."""

    code = "wrong-clients"


class ChangedData(Refused):
    """The site's data have changed without a declaration."""

    code = "changed-data"


class NormTooLarge(Refused):
    """The update's norm is larger than any honest update's."""

    code = "norm-too-large"


class ExpectedUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """The properties that the updates of one exchange must have."""

    run: str
    round: int
    exchange: int
    config: str
    kinds: Mapping[str, LeafSpec]  # of the report's tensors: trees.leaf_specs(eval_shape of a report)
    # site -> fingerprint of its data; a site that is missing here replies for the first time
    data: Mapping[str, str] = {}
    answers: str | None = None  # digest of this exchange's broadcast; None: updates need not name it
    max_weight: float
    max_norm: float  # of the update; inf: compared with the others later (outlying.py)
    max_examples: int | None = None  # the number that the site claimed
    max_steps: int | None = None  # by its plan for this number of examples
    beside: frozenset[str] = frozenset()  # the tensors that are not part of the update and its norm
    limited: bool = False  # whether the time was limited, so that only a part may be done
    # tensor of one number -> (least, most) that it may hold
    stats: Mapping[str, tuple[float, float]] = {}
    clients: int | None = None  # behind the mean, if departments are clients; None: one client


class Verdict(NamedTuple):
    """The result of validating one update, in plain values for the audit log."""

    accepted: bool
    code: str  # accepted, data-change-declared, or the code of the problem
    reason: str
    norm: float | None  # l2, of the update; None if an earlier check failed


def validate(envelope: Envelope, expected: ExpectedUpdate) -> Verdict:
    """Whether the update may be used in this exchange; raises nothing, whatever it contains."""
    norm = None
    try:
        code = _check_header(envelope.header, expected)
        check_specs(envelope.tensors, expected.kinds)
        _check_stats(envelope.tensors, expected.stats)
        norm = measure_update(envelope.tensors, expected.beside)
        if norm > expected.max_norm:
            raise NormTooLarge(
                f"the norm of the update is above the bound of {expected.max_norm:g}; clip it, or look at what the site trained on"
            )
    except Refused as refusal:
        return Verdict(False, refusal.code, str(refusal), norm)
    return Verdict(True, code, "", norm)


def _check_header(header: Header, expected: ExpectedUpdate) -> str:
    """The code of acceptance; raises a `Refused` if the header alone shows that the update cannot be used."""
    if header.kind != "update":
        raise WrongKind(
            f"the message is of kind {header.kind!r}, and an update is expected; send it to what handles that kind"
        )
    if header.run != expected.run:
        raise WrongRun(
            f"the update is of run {header.run!r}, and this is {expected.run!r}; the site should join the present run"
        )
    if header.round != expected.round:
        raise WrongRound(
            f"the update is of round {header.round}, and this is {expected.round}; the site joins again with the next broadcast"
        )
    if header.exchange != expected.exchange:
        raise WrongExchange(
            f"the update is of exchange {header.exchange} of the round, and this is {expected.exchange}"
        )
    if header.config != expected.config:
        raise WrongConfig(
            f"the site runs configuration {shown(header.config)}, and the run has {shown(expected.config)}; "
            "both ends need the same study: algorithm, settings, code and fedjax_core, and Python too for code of a notebook"
        )
    if expected.answers is not None and header.answers != expected.answers:
        raise WrongModel(
            "the update was not computed from this round's broadcast; the site should train from the latest one"
        )
    for name, kind in (("weight", float), ("examples", int), ("data", str)):
        if type(header.fields.get(name)) is not kind:
            raise BadField(
                f"an update needs the field {name!r} of type {kind.__name__}; the site should send it with the tensors"
            )
    weight: Any = header.fields["weight"]
    if not 0 <= weight <= expected.max_weight:  # NaN is not
        raise BadWeight(
            f"the weight is not between 0 and the bound of {expected.max_weight:g}; a site cannot count for more than its examples give "
            "it, or set Rules(max_weight=) where the algorithm weighs otherwise"
        )
    if expected.max_examples is not None and not 0 <= header.fields["examples"] <= expected.max_examples:  # type: ignore[operator]
        raise TooManyExamples(
            f"the update is of another number of examples than the {expected.max_examples} that the site said to have; "
            "where its data have grown, begin another run (run_name=)"
        )
    if expected.limited:
        for name, most in zip(PARTIAL, (expected.max_steps, expected.max_examples), strict=True):
            part, whole = header.fields.get(name), header.fields.get(f"{name}.weight")
            if not (
                type(part) is type(whole) is float
                and (0 < part <= whole or part == whole == 0)
                and (most is None or whole <= most)
            ):
                raise BadSteps(
                    f"time to train was limited, so the update needs {name!r} and {name + '.weight'!r}, the part done and the whole"
                )
    if expected.clients is not None and header.fields.get("clients") != expected.clients:
        raise WrongClients(
            f"the update is not of the {expected.clients} clients that {header.sender!r} said to be; where its departments have changed, "
            "begin another run"
        )
    return check_data(header, expected.data)


def _check_stats(tensors: Mapping[str, np.ndarray], bounds: Mapping[str, tuple[float, float]]) -> None:
    for name, (least, most) in bounds.items():
        if not least <= (value := float(tensors[name])) <= most:  # NaN is not
            raise BadStats(
                f"the report says {value:g} as {name}, and the site's examples and steps give {most:g}; both ends need the same version, "
                "and a site has no choice of that number"
            )


def check_data(header: Header, fingerprints: Mapping[str, str]) -> str:
    """The code of acceptance for a reply's data fingerprint; raises `ChangedData` if it has changed."""
    data = header.fields.get("data")
    if not isinstance(data, str):
        raise BadField(
            "a report needs the field 'data' of type str; the site should send it with the tensors"
        )
    known = fingerprints.get(header.sender, data)
    if data == known:
        return "accepted"
    if header.fields.get("data_was") != known:
        raise ChangedData(
            f"the data of {header.sender!r} have another fingerprint than before, which the site does not declare: its data "
            "changed, or its key, by which the fingerprint is made; where that is meant, its site.toml has the former one as data_was"
        )
    return "data-change-declared"
