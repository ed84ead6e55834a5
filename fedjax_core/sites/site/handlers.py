"""`HANDLERS`: the functions that answer requests about a site's data, by the kinds of `kinds.py`.

A new kind needs a function, a line here, and one in `kinds.KINDS`. A handler gets the site's context and a
request that is authentic, in time, of the site's own study and allowed by its policy. It returns
`context.reply(...)`, or raises a `Refused`."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_core.algorithms.base import Addressed, Told
from fedjax_core.data.preprocess import sums_of
from fedjax_core.sites.policy.answered import ALL
from fedjax_core.sites.protocol import request
from fedjax_core.sites.protocol.kinds import CONFIRM, MASK, REVEAL, SHARE
from fedjax_core.sites.protocol.report import PARTIAL, beside, partial_entry
from fedjax_core.sites.protocol.request import WITHHELD, BadRequest
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.site import client_update, preprocessing, secure
from fedjax_core.sites.site import statistics as own_statistics
from fedjax_core.sites.site.context import SiteContext
from fedjax_core.sites.wire.canonical import Bytes, Scalar, in_lines
from fedjax_core.sites.wire.envelope import Envelope, Header
from fedjax_core.sites.wire.trees import from_tensors, to_tensors
from fedjax_core.stats.messages import name_of
from fedjax_core.work import Work


class NotFiniteHere(Refused):
    """Training at the site gave NaN or an infinity, so nothing is sent."""

    code = "not-finite"
    of_data = True


def train(site: SiteContext, envelope: Envelope) -> Bytes:
    """Runs the site's part of an exchange, and replies with its report as the uplink encodes it."""
    header, composed = envelope.header, site.study.round
    e = header.exchange
    if not e < len(composed.algorithm.exchanges):
        raise BadRequest(f"the study has {len(composed.algorithm.exchanges)} exchanges a round")
    body = site.form(e, request.count(header, "sites"), request.has_first(header)).filled(envelope.tensors)
    seconds = request.train_seconds(header)
    work = composed.algorithm.exchanges[e].work
    if seconds is not None and not work.trains:
        raise BadRequest(
            f"exchange {e} goes over its examples in order, or over none, so its time cannot be limited"
        )
    if seconds is not None and site.study.departments:
        raise BadRequest(
            "departments train side by side and each to its end, so their time cannot be limited"
        )
    version, keep = request.version(body, site.address), site.keep(header.run)
    if version == 0 and jax.tree.leaves(site.kept_shapes):
        if "first" not in body:
            raise BadRequest("the request does not say what a site keeps before its first round")
        keep.write(0, body["first"])
    kept, after = (
        keep.read(version, site.kept_shapes),
        header.round * len(composed.algorithm.exchanges) + e + 1,
    )
    needed, recent = request.needed(header, body, site.address)
    keep.make_room(site.kept_shapes, after, {*needed, version}, recent, site.enforcement.policy.caps.kept_gb)
    draws = request.draws(header, site.address, site.secret, of=f"{site.data.fingerprint}/{seconds}")
    position = request.position(body, site.address)
    site.data.placed(position)
    message = body["message"]
    if isinstance(message, Addressed):  # this site's row of the per-site messages
        message = Told(message.message, jax.tree.map(lambda x: x[position], message.rows))
    limit = _limit(site, header, work, seconds)
    with site.budget.round(site.enforcement.policy.caps) as watch:
        if site.study.departments:
            seen = site.data.departments.visit(message, draws, watch)
        else:
            seen = client_update.client_update(
                composed, e, site.data.plan, site.data.clients, message, body["uplink"], kept, draws, header.round, watch, limit,
                site.protecting[e],
            )  # fmt: skip
    sent, raw_weight, now, fine, left, metrics = seen
    left = left if site.study.measurable else {}
    weight = float(raw_weight)
    if not (bool(fine) and math.isfinite(weight)):
        raise NotFiniteHere(
            "training gave numbers that are not finite, so nothing was kept or sent; train with a smaller step"
        )
    site.enforcement.check_weight(
        header, weight, (site.data.raw.examples, int(np.count_nonzero(site.data.raw.sizes)))
    )
    steps = int(metrics[PARTIAL[0]].total) if limit is not None else None
    minimum, used = site.enforcement.policy.minimum, site.data.raw.examples
    if not work.idle and (minimum.examples or minimum.per_class or minimum.cell):
        used, per_class = site.data.used(header.round, work, steps)
        site.enforcement.check_examples(used, per_class)
    if beside(sent):
        site.enforcement.check_cell(used)
    if seconds is not None and steps is not None:
        site.done.add(_which(site, header, seconds), steps, header)
    data = site.data
    fields: dict[str, Scalar] = {"examples": data.raw.examples, "data": data.fingerprint, **data.counted}
    if site.site_file.data_was is not None:
        fields["data_was"] = site.site_file.data_was
    if site.study.secure(e) is not None:
        by = {"algorithm": composed.algorithm.name, **data.counted, **_draw(site, draws, e)}
        reply = secure.advertise(site, header, sent, fields, by, ALL if steps is None else steps)
        keep.write(after, now)
        return reply
    fields["weight"] = weight
    visits = data.visits(header.round, work) if minimum.cell and not work.idle else 1
    for name, metric in (metrics | left).items():
        sums = {f.name: float(getattr(metric, f.name)) for f in dataclasses.fields(metric)}
        # `PARTIAL` counts steps and `left` is of the update. A step's metric may count an example once a pass, and
        # some have no weight.
        times = 1 if name in site.of_reports[e] else visits
        of = None if name in PARTIAL or name in left else min(used, sums.get("weight", math.inf) / times)
        fields |= site.enforcement.metric(name, sums, of)
    more: dict[str, Scalar] = {
        **data.counted,
        **{name: float(one.total) for name, one in left.items()},
        **partial_entry(metrics),
    }
    more |= {"algorithm": composed.algorithm.name, **_draw(site, draws, e)} | (
        {} if site.study.epsilon is None else {"epsilon": site.study.epsilon}
    )
    reply = site.reply(header, fields, to_tensors(sent), more, ALL if steps is None else steps, beside(sent))
    keep.write(after, now)
    return reply


def _draw(site: SiteContext, draws: request.Draws, e: int) -> dict[str, Scalar]:
    """For the audit log: the name of the draw of the noise that protects examples, if any. The same draw
    discloses nothing new."""
    return {"draw": draws.name} if site.protecting[e] else {}


def _limit(
    site: SiteContext, header: Header, work: Work, seconds: float | None
) -> Callable[[int], int] | None:
    """The function that says how many steps may follow so many; None: all steps.

    A model is always trained to the same step, whatever time there is now. The difference of two reports of
    one model would disclose the few examples that only one of them used. A model that is nearly the same, or
    of another run, counts as another one; so there are also few places to stop at (`SiteData.stop`).
    """
    before = (
        0
        if site.question is None or site.enforcement.policy.evaluation.models == "any"
        else site.enforcement.answered.steps(site.question)
    )
    if before == ALL:
        return None if seconds is None else lambda done: sys.maxsize
    if before:
        return lambda done: before - done
    if seconds is None:
        return None
    limit, least = (
        site.done.limit(_which(site, header, seconds), seconds, site.budget.clock),
        site.enforcement.policy.minimum.examples,
    )
    return (
        limit
        if least < 2
        else lambda done: limit(done) or site.data.stop(header.round, work, done, least) - done
    )


def _which(site: SiteContext, header: Header, seconds: float | None) -> str:
    """The key of the step log: the question, and its time limit if a model may be trained to several
    steps."""
    digest = header.digest if site.question is None else site.question.digest
    where = f"{header.run}/{header.round}/{header.exchange}/{digest}"
    return (
        where
        if site.enforcement.policy.evaluation.models == "sent" or seconds is None
        else f"{where}/{seconds:g}"
    )


def evaluate(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with the metric sums of the round's model, or the site's personalised one, on its examples."""
    header, algorithm = envelope.header, site.study.round.algorithm
    model = {"params": site.params} if algorithm.personal is None else {"server": site.server}
    first = site.kept_shapes if request.has_first(header) else None
    body = from_tensors(envelope.tensors, model | request.about_sites(request.count(header, "sites"), first))
    if algorithm.personal is None:
        params = body["params"]
    else:
        version = request.version(body, site.address)
        kept = (
            body["first"]
            if version == 0 and "first" in body
            else site.keep(header.run).read(version, site.kept_shapes)
        )
        params = algorithm.personal(body["server"], jax.tree.map(jax.numpy.asarray, kept.own))
    return _sums(site, header, params)


def score(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with the metric sums of a given model on the same examples."""
    return _sums(site, envelope.header, from_tensors(envelope.tensors, {"params": site.params})["params"])


def _sums(site: SiteContext, header: Header, params: Any) -> Bytes:
    """The metric sums of a model. The batch size is fixed: with losses in which examples meet, a chosen one
    would be a query."""
    clients = site.data.judged
    site.enforcement.check_examples(*site.data.judged_of)
    site.enforcement.check_cell(clients.examples)
    fields: dict[str, Scalar] = {"examples": clients.examples}
    task, minimum = site.study.round.algorithm.task, site.enforcement.policy.minimum.cell
    totals = client_update.totals(task, params, clients, client_update.EVALUATED)
    # One count alone that is not told would be what the others leave of all examples: so none is.
    few = any(0 < totals[name] < minimum for name in task.people if name in totals)
    for name, total in totals.items():
        if not (few and name in task.people):
            fields |= site.enforcement.metric(name, {"total": total})
    return site.reply(header, fields)


def describe(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with the site's description, as the coordinator begins a run, or begins it anew."""
    data = site.data
    fields: dict[str, Scalar] = {
        "examples": data.raw.examples,
        "data": data.fingerprint,
        **data.schema,
        **data.counted,
        **data.held_out,
    }
    if data.skipped is not None:
        fields["skipped"] = data.skipped
    kept = [name for name in site.metrics if not site.enforcement.policy.may_leave([name], 0.0).allowed]
    reply = site.reply(envelope.header, fields | in_lines(WITHHELD, kept))
    site.enforcement.answered.begins_anew(envelope.header.run)
    return reply


def measure(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with the sums that the study's preprocessing needs, of the raw columns."""
    steps = site.study.prepare
    if not steps:
        raise BadRequest("the study prepares nothing, so no sums are told")
    kinds = preprocessing.leaving(steps)
    if not (leave := site.enforcement.policy.may_leave(kinds, 0.0)).allowed:
        raise preprocessing.SumsStay(f"{leave.reason} [{leave.code}]")
    fields: dict[str, Scalar] = {"examples": site.data.raw.examples}
    fields |= {
        name: " ".join(step.column for step in steps if name in step.releases)[:1000] for name in kinds
    }
    sums = sums_of(steps, site.data.raw.columns, site.enforcement.policy.minimum.cell)
    return site.reply(envelope.header, fields, to_tensors({"sums": sums}))


def statistics(site: SiteContext, envelope: Envelope) -> Bytes:
    """Replies with the sums of the requested statistic, of the raw columns."""
    text = envelope.tensors.get("['statistic']")
    if text is None or text.dtype != np.uint8:
        raise BadRequest("the request says no statistic")
    statistic = own_statistics.asked_for(text)
    sums, released = own_statistics.sums(
        statistic, site.data, site.name, site.enforcement.policy.outputs, lambda: site.desk
    )
    fields: dict[str, Scalar] = {
        "examples": site.data.raw.examples,
        "statistics": f"{name_of(statistic)}: {' '.join(statistic.columns)}"[:1000],
    }
    return site.reply(envelope.header, fields, to_tensors({"sums": sums}), released)


HANDLERS: Mapping[str, Callable[[SiteContext, Envelope], Bytes]] = {
    "train": train, "evaluate": evaluate, "score": score, "describe": describe, "measure": measure,
    "statistics": statistics, SHARE: secure.share, MASK: secure.mask, CONFIRM: secure.confirm, REVEAL: secure.reveal,
}  # fmt: skip
