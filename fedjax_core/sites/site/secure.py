"""The request handlers for secure aggregation; each answer passes the policy and is recorded, like any other.

A request that the protocol forbids (both shares of one peer, another roster, too few sites) is refused with
the protocol's own code, which the site's audit log and the coordinator get with the reason.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from fedjax_core.secure_aggregation.messages import Boxes, Refusal, Roster, Survivors, Wanted
from fedjax_core.secure_aggregation.ring import Masked
from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.sites.protocol.secure import CANNOT_SEE, IDENTITIES, VECTOR, read, written
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.site.context import SiteContext
from fedjax_core.sites.site.secure_attempt import NotAgreed, OutOfRing, Secure
from fedjax_core.sites.wire.canonical import Bytes, Scalar
from fedjax_core.sites.wire.envelope import Envelope, Header
from fedjax_core.sites.wire.trees import to_tensors


def advertise(
    site: SiteContext,
    header: Header,
    sent: Masked,
    fields: Mapping[str, Scalar],
    more: Mapping[str, Scalar],
    steps: int,
) -> Bytes:
    """Replies to a request to train with the keys of an attempt; the policy checks the report, which
    stays."""
    secure = _secure(site)
    vector = secure.vector(sent)
    with _agreed():
        # Fewer reports would carry less noise than promised.
        least = max(site.enforcement.policy.minimum.sites, site.study.round.uplink.promises.reports)
        attempt = secure.begin(header, vector, least)
        tensors = to_tensors(written(attempt.client.advertise()))
    details = {**more, "secure": "keys alone: the report stays here until it is under masks"}
    reply = site.reply(header, fields, tensors, details, steps, judged=secure.judged(vector))
    secure.go_on(attempt)
    return reply


def share(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with a box for each peer, with a share of this site's secrets."""
    secure, attempt, roster = (
        _secure(site),
        _secure(site).attempt(envelope.header),
        read(envelope.tensors, Roster),
    )
    secure.meet(roster, envelope.tensors.get(f"['{IDENTITIES}']"))
    most = secure.ring.weights // max(1, len(roster.sites))
    if int(attempt.vector[-1]) > most:
        raise OutOfRing(
            f"the weight of the report is above {most}, what the study gives each of {len(roster.sites)} sites: have it made with a larger "
            "fc.uplink.secure(weights=)"
        )
    return _answer(site, envelope.header, lambda: written(attempt.client.share(roster)))


def mask(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with the report under its masks."""
    attempt, boxes = _secure(site).attempt(envelope.header), read(envelope.tensors, Boxes)
    details: dict[str, Scalar] = {"secure": f"under masks with {len(boxes.senders)} sites: {CANNOT_SEE}"}
    return _answer(
        site, envelope.header, lambda: {VECTOR: attempt.client.mask(boxes, attempt.vector).vector}, details
    )


def confirm(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with this site's signature over who is in the sum."""
    attempt, survivors = _secure(site).attempt(envelope.header), read(envelope.tensors, Survivors)
    details: dict[str, Scalar] = {
        "secure": f"agrees to the sum of {len(survivors.names)} sites: {listed(survivors.names)}"
    }
    return _answer(site, envelope.header, lambda: written(attempt.client.confirm(survivors)), details)


def reveal(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with one share of each peer's secrets."""
    attempt, wanted = _secure(site).attempt(envelope.header), read(envelope.tensors, Wanted)
    details: dict[str, Scalar] = {
        "secure": f"opens the sum of {len(wanted.confirmed)} sites or more: {CANNOT_SEE}"
    }
    return _answer(site, envelope.header, lambda: written(attempt.client.reveal(wanted)), details)


def _answer(
    site: SiteContext,
    header: Header,
    message: Callable[[], dict[str, np.ndarray]],
    more: Mapping[str, Scalar] | None = None,
) -> Bytes:
    with _agreed():
        tensors = to_tensors(message())
    return site.reply(header, {}, tensors, more)


def _secure(site: SiteContext) -> Secure:
    if site.secure is None:
        raise BadRequest("the study has no secure aggregation (fc.uplink.secure)")
    return site.secure


@contextmanager
def _agreed() -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise NotAgreed(refusal) from None
