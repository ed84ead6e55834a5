"""The release gate: attacks a trained model to learn who was trained on, before it is given to anybody else.

    losses of members and of others  ─► loss attack ┐
    shadow runs on halves of both    ─► LiRA        ├─ for all, each site, each subgroup ─► blocked, where one is above a limit
    numbers in the model, rare levels ─► structure  ┘

A passed gate is no promise: these attacks found nothing above the limits, but others may. Only differential
privacy is a promise (docs/privacy.md). Shadow runs repeat the training on the same sites, each on a random
half of the records of each, members and others together, so that a record is in about half of them.

`fedjax-core release RUN_DIR --candidate module:function` does it for the newest checkpoint of a run; the
function returns a `Candidate`."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.data.clients import Clients
from fedjax_core.data.columns import narrow
from fedjax_core.files import make_folder, write_whole
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.privacy import membership
from fedjax_core.task import Task
from fedjax_core.types import Batch, Params

_AT_ONCE = 4096  # examples whose losses are computed at once


class Candidate(NamedTuple):
    """A run whose model is to be released, and what is needed to attack it."""

    simulator: Simulator
    """The simulator that trained it: its clients' records are the members."""
    others: Clients
    """Records of the same sites, in their order, that were not trained on."""
    cohorts: Callable[[int], Any]
    rounds: int
    subgroup: str | None = None
    """A column whose values define subgroups, which are judged by themselves too."""


@dataclass(frozen=True)
class Limits:
    """The limits above which a model is blocked."""

    auc: float = 0.6
    """The AUC of an attack: 0.5 is chance."""
    tpr: float = 0.05
    """The share of members that an attack finds at the rate `fpr` of false alarms."""
    fpr: float = 0.01
    records_per_parameter: float = 3.0
    """Fewer records than this for each number in the model."""
    level: int = 10
    """Fewer records than this at one level of a column of whole numbers."""
    least: int = 20
    """A site or subgroup with fewer members or others than this is not judged by itself: its numbers would be
    chance."""


USUAL = Limits()


class Finding(NamedTuple):
    """The result of one check, on all records, a site or a subgroup."""

    check: str
    group: str
    value: float
    limit: float
    blocks: bool
    said: str


class Verdict(NamedTuple):
    """The findings of the gate."""

    findings: list[Finding]
    probabilities: list[dict[str, Any]]
    """A row a record: site, member, label, the model's outputs, the scores of the attacks."""

    @property
    def blocked(self) -> bool:
        """Whether a finding is above its limit."""
        return any(one.blocks for one in self.findings)


def examine(
    candidate: Candidate, params: Params, *, shadows: int = 16, seed: int = 0, limits: Limits = USUAL
) -> Verdict:
    """Attacks the model `params` with this many shadow runs, and looks at its structure."""
    at_least(2, shadows=shadows)
    sim, task = candidate.simulator, candidate.simulator.round.algorithm.task
    if sim.clients.ids.tolist() != candidate.others.ids.tolist():
        raise ValueError(
            "others= has to have the same clients as the simulator, in their order: held-out records of each site"
        )
    if sim.plan_of_batches.order is not None:
        raise ValueError(
            "a run by order= names its own records, and shadow runs have others: train without, or release by hand"
        )
    pool = [_joined(a, b) for a, b in zip(sim.clients, candidate.others, strict=True)]
    sizes = np.array([len(next(iter(jax.tree.leaves(one)))) for one in pool])
    member = np.concatenate([np.arange(n) < k for n, k in zip(sizes, sim.clients.sizes, strict=True)])
    site = np.repeat(sim.clients.ids, sizes)
    columns = jax.tree.map(lambda *x: np.concatenate(x), *pool)
    losses = _losses(task, params, columns)
    inside = np.stack(
        [np.concatenate([_half(rng, n) for n in sizes]) for rng in np.random.default_rng(seed).spawn(shadows)]
    )
    for i in range(0, shadows - 1, 2):
        inside[i + 1] = ~inside[i]  # so each record is in half of them, and never in all or none
    starts = np.concatenate([[0], np.cumsum(sizes)])
    seen = np.stack(
        [
            _losses(task, _shadow(candidate, columns, mask, starts, seed + i), columns)
            for i, mask in enumerate(inside)
        ]
    )
    scores = {"loss": -losses, "lira": membership.lira(losses, seen, inside)}
    groups = {"all": np.ones(len(member), bool), **{f"site {name}": site == name for name in sim.clients.ids}}
    if candidate.subgroup is not None:
        values = np.asarray(columns[candidate.subgroup])
        groups |= {f"{candidate.subgroup} = {value}": values == value for value in np.unique(values)}
    findings = [*_attacked(scores, member, groups, limits), *_structure(params, columns, member, limits)]
    rows = _rows(
        task,
        params,
        columns,
        {"site": site, "member": member.astype(int), **{f"score_{k}": v for k, v in scores.items()}},
    )
    return Verdict(findings, rows)


def write(verdict: Verdict, limits: Limits, folder: Path) -> None:
    """Writes release.json and probabilities.csv, for their owner alone: they say who was trained on."""
    make_folder(folder)
    content = {
        "blocked": verdict.blocked,
        "limits": asdict(limits),
        "findings": [one._asdict() for one in verdict.findings],
    }
    write_whole(folder / "release.json", json.dumps(content, indent=1))
    text = io.StringIO()
    table = csv.DictWriter(text, list(verdict.probabilities[0]))
    table.writeheader()
    table.writerows(verdict.probabilities)
    write_whole(folder / "probabilities.csv", text.getvalue())


def _attacked(
    scores: Mapping[str, np.ndarray], member: np.ndarray, groups: Mapping[str, np.ndarray], limits: Limits
) -> Iterator[Finding]:
    for attack, score in scores.items():
        for group, here in groups.items():
            members, rest = score[member & here], score[~member & here]
            if min(len(members), len(rest)) < limits.least:
                yield Finding(
                    attack,
                    group,
                    np.nan,
                    limits.auc,
                    False,
                    f"not judged: {len(members)} members and {len(rest)} others",
                )
                continue
            measured = membership.judged(members, rest, limits.fpr)
            (low, high), (least, most) = measured.auc_interval, measured.tpr_interval
            of = f"{measured.members} members, {measured.others} others"
            yield Finding(
                f"{attack} AUC",
                group,
                measured.auc,
                limits.auc,
                measured.auc > limits.auc,
                f"95 % from {low:.3f} to {high:.3f}; {of}",
            )
            yield Finding(
                f"{attack} TPR at {limits.fpr:g} FPR", group, measured.tpr, limits.tpr, measured.tpr > limits.tpr,
                f"95 % from {least:.3f} to {most:.3f} (Clopper and Pearson); {of}",
            )  # fmt: skip


def _structure(
    params: Params, columns: Mapping[str, np.ndarray], member: np.ndarray, limits: Limits
) -> Iterator[Finding]:
    numbers, records = sum(x.size for x in jax.tree.leaves(params)), int(member.sum())
    share = records / numbers
    yield Finding(
        "records per parameter", "all", share, limits.records_per_parameter, share < limits.records_per_parameter,
        f"{records} records, {numbers} numbers in the model",
    )  # fmt: skip
    for name, x in columns.items():
        if np.issubdtype(x.dtype, np.integer) and x.ndim == 1:
            levels, counts = np.unique(x[member], return_counts=True)
            rare = int(counts.min())
            yield Finding(
                "rarest level", f"column {name}", float(rare), float(limits.level), rare < limits.level,
                f"level {levels[counts.argmin()]} of {len(levels)}",
            )  # fmt: skip


def _shadow(candidate: Candidate, columns: Any, inside: np.ndarray, starts: np.ndarray, seed: int) -> Params:
    """The model of a shadow run on these records."""
    sim = candidate.simulator
    rows = [np.flatnonzero(inside[a:b]) + a for a, b in itertools.pairwise(starts)]
    clients = Clients.from_list(
        [jax.tree.map(lambda x, chosen=chosen: x[chosen], columns) for chosen in rows],
        ids=sim.clients.ids.tolist(),
    )
    plan = {name: value for name, value in sim.plan_of_batches.settings.items() if name != "order"}
    shadow = Simulator(sim.round, clients, **plan)
    state = shadow.init(jax.random.key(seed))
    for round in range(candidate.rounds):
        state, _ = shadow.run(state, candidate.cohorts(round))
    return state.params


def _half(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.asarray(rng.permutation(n) < n // 2)


def _joined(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: np.concatenate([np.asarray(x), np.asarray(y)]), a, b)


def _losses(task: Task, params: Params, columns: Any) -> np.ndarray:
    """[n] losses of single records, as in evaluation."""
    return np.concatenate(
        [np.asarray(task.evaluation(params, batch)["loss"], np.float64) for batch in _batches(columns)]
    )


def _batches(columns: Any) -> Iterator[Batch]:
    n = len(next(iter(jax.tree.leaves(columns))))
    for start in range(0, n, _AT_ONCE):
        part = narrow(jax.tree.map(lambda x, start=start: x[start : start + _AT_ONCE], columns))
        yield Batch(part, np.ones(len(next(iter(jax.tree.leaves(part)))), np.float32))  # type: ignore[arg-type]


def _rows(task: Task, params: Params, columns: Any, more: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row a record: the columns `more`, the label, and the probability of each class if the task has
    classes."""
    table = dict(more)
    if isinstance(columns, Mapping) and "y" in columns and np.asarray(columns["y"]).ndim == 1:
        table["label"] = np.asarray(columns["y"])
    if task.predict is not None:
        out = np.concatenate(
            [np.asarray(task.predict(params, batch), np.float64) for batch in _batches(columns)]
        )
        out = out.reshape(len(out), -1)
        if task.classes is not None:
            logits = np.concatenate([np.zeros_like(out), out], axis=1) if out.shape[1] == 1 else out
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            out = shifted / shifted.sum(axis=1, keepdims=True)
        table |= {
            f"{'probability' if task.classes is not None else 'output'}_{i}": out[:, i]
            for i in range(out.shape[1])
        }
    names = list(table)
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*(table[name].tolist() for name in names), strict=True)
    ]
