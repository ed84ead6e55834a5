"""Fits preprocessing over all sites, once before the first round, and keeps the parameters for good.

    request ─measure─► every site ─► checked sums ─► merged in the sites' order ─► parameters, in every request

They are stored exactly, in `RUN-prepared.json` in the coordinator's folder, so a restarted run has the same
bits and asks no site again. All sites must answer: a scaler of some sites is another scaler, and nobody would
notice."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_core.data.preprocess import Fitted, Step, Sums, finalize
from fedjax_core.describe import describe
from fedjax_core.files import write_whole
from fedjax_core.sites.coordinator.absent import with_reasons
from fedjax_core.sites.coordinator.collect import Collector, Paused
from fedjax_core.sites.coordinator.units import absurd, far
from fedjax_core.sites.protocol.request import Record, Requests
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.trees import from_tensors_open

log = logging.getLogger("fedjax_core")


class BadSums(Refused):
    """The sums that a site reports of its columns are impossible."""

    code = "bad-sums"


def fit_preprocessing(
    steps: tuple[Step, ...],
    collector: Collector,
    requests: Requests,
    record: Record,
    path: Path | None,
    features: Mapping[str, Sequence[str]],
) -> Fitted:
    """The steps fitted to all sites, from the file at `path`, or measured now and written to it.

    Raises `Paused` if a site sends no sums, with its reason. Warns if a site's means lie far from the others'
    (units.py), with names from `features`.
    """
    known = path is not None and path.exists()
    fitted = (
        _read(path, steps)
        if path is not None and known
        else _measured(steps, collector, requests, record, features)
    )
    if path is not None and not known:
        _write(path, fitted)
    details: dict[str, Scalar] = {"numbers": fitted.digest, "steps": len(steps), "measured": not known}
    record(COORDINATOR, "prepared", 0, details)
    return fitted


def _measured(
    steps: tuple[Step, ...],
    collector: Collector,
    requests: Requests,
    record: Record,
    features: Mapping[str, Sequence[str]],
) -> Fitted:
    names = collector.names
    if away := collector.unknown.keys() | collector.silent:
        why = with_reasons(
            {
                names[position]: collector.replies.reasons.get(position, "no reply")
                for position in sorted(away)
            }
        )
        raise Paused(
            f"preprocessing needs sums of every site's columns before the first round, and not all are there. {why}"
        )
    replies = collector.collect(requests.write("measure", 0, to=names), 0, list(range(len(names))))
    reasons = {
        names[position]: collector.replies.reasons.get(position, "no reply")
        for position in range(len(names))
        if position not in replies
    }
    site_sums: list[tuple[Sums, ...]] = []
    senders: list[str] = []
    for position, reply in sorted(replies.items()):
        try:
            site_sums.append(
                _sums(
                    steps, reply.tensors, int(collector.sizes[position]), site_sums[0] if site_sums else None
                )
            )
            senders.append(names[position])
        except Refused as refusal:
            reasons[names[position]] = str(refusal)
            record(names[position], "refused", 0, {"code": refusal.code, "reason": str(refusal)[:1000]})
    for place, why in absurd(steps, site_sums).items():
        reasons[senders[place]] = why
        record(senders[place], "refused", 0, {"code": BadSums.code, "reason": why})
    if reasons:
        raise Paused(
            "preprocessing needs sums of every site's columns, and these told none that count, so a run cannot begin. "
            + with_reasons(reasons)
        )
    for sentence in far(steps, names, site_sums, features):
        log.warning("%s", sentence)
        record(COORDINATOR, "far apart", 0, {"reason": sentence[:1000]})
    return finalize(steps, site_sums)


def _sums(
    steps: tuple[Step, ...], tensors: Mapping[str, np.ndarray], examples: int, first: tuple[Sums, ...] | None
) -> tuple[Sums, ...]:
    """The sums of a site, an entry a step; raises a `Refused` if they are impossible, or differ in shape from
    the `first` site's."""
    # Names and dtypes; a vocabulary is a vector of length 0.
    empty = tuple(dict(step.sums(np.zeros(0, np.int64), 0)) for step in steps)

    def like(path: Any, leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        given = tensors.get(f"['sums']{jax.tree_util.keystr(path)}", leaf)
        return jax.ShapeDtypeStruct(leaf.shape if leaf.shape == (0,) else given.shape, leaf.dtype)

    shapes = jax.tree_util.tree_map_with_path(like, empty)
    if first is not None:
        shapes = jax.tree.map(
            lambda ours, one: ours if ours.shape == (0,) else jax.ShapeDtypeStruct(one.shape, ours.dtype),
            shapes,
            first,
        )
    result: tuple[Sums, ...] = from_tensors_open(tensors, {"sums": shapes})["sums"]
    for step, sums in zip(steps, result, strict=True):
        if (reason := step.validate(sums, examples)) is not None:
            raise BadSums(f"its sums for {type(step).__name__}({step.column!r}) cannot be: {reason}")
    return result


def _write(path: Path, fitted: Fitted) -> None:
    numbers = [
        {part: [x.dtype.name, list(x.shape), x.ravel().tolist()] for part, x in one.items()}
        for one in fitted.parameters
    ]
    write_whole(
        path,
        json.dumps(
            {"steps": describe(fitted.steps), "numbers": numbers, "digest": fitted.digest}, allow_nan=False
        ),
    )


def _read(path: Path, steps: tuple[Step, ...]) -> Fitted:
    try:
        document: Any = json.loads(path.read_text())
        numbers = tuple(
            {part: np.array(x, dtype).reshape(shape) for part, (dtype, shape, x) in one.items()}
            for one in document["numbers"]
        )
        fitted = Fitted(steps, numbers)
        whole = fitted.digest == document["digest"]
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path}, the numbers of preprocessing, is damaged: restore it from its backup, or remove it to measure anew"
        )
    if document["steps"] != describe(steps):
        raise ValueError(
            f"{path} has the numbers of other steps than the study's: begin another run (run_name=), or go back to those steps"
        )
    return fitted
