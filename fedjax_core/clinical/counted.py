"""AUROC at real sites: a task whose evaluation counts people by bins of risk, which add over sites.

    task = counted.counting(fc.models.logistic(features=3, classes=2), edges)      before fc.compose
    found = counted.of(federation.evaluate(history.state), edges)
    intervals.delong(found.together), {site: ranks.auroc(one) for site, one in found.each.items()}

For any model, no person's risk leaves a site, only the numbers of people with and without the outcome in each
bin of risk: metrics `ill_0`, `well_0`, ..., which a site's policy must name (`names`). A site whose policy
has a `minimum.cell` withholds all its counts where one of them is of fewer people and not of none: give few
and wide bins. The bins' error of the AUROC is bounded (`ranks.Bounded`).

>>> names(np.array([0, 0.5, 1.0]))
('ill_0', 'well_0', 'ill_1', 'well_1')
>>> shares = {"ill_0": np.array([0.1]), "well_0": np.array([0.4]), "ill_1": np.array([0.3]), "well_1": np.array([0.2])}
>>> found = of(Evaluation({}, shares, np.array([10])), np.array([0, 0.5, 1.0]), ["oslo"])
>>> found.together
Counts(ill=array([1, 3]), well=array([4, 2]))
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.clinical.ranks import Counts
from fedjax_core.clinical.sums import added
from fedjax_core.evaluation import Evaluation
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Params


class Counted(NamedTuple):
    """Counts of people by bins of risk, at each site and together."""

    together: Counts  # of all sites with counts
    each: dict[str, Counts]
    without: tuple[str, ...]
    """Sites without counts."""


def names(edges: np.ndarray) -> tuple[str, ...]:
    """The names of the metrics, as `leaving.fields` of a site's policy has to list them."""
    _check(edges)
    return tuple(f"{what}_{b}" for b in range(len(edges) - 1) for what in ("ill", "well"))


def counting(
    task: Task, edges: np.ndarray, *, outcome: str = "y", risk: Callable[[Array], Array] | None = None
) -> Task:
    """The task, with counts of people by bins of risk among its metrics of evaluation.

    `edges`: public edges of bins of risk, from 0 to 1 (`ranks.grid(10)`). `outcome`: the column that is 1 for
    people with it. `risk` makes a probability [B] of the task's predictions; by default from one logit, or
    from two classes.
    """
    _check(edges)
    if task.predict is None:
        raise ValueError("the task predicts nothing, so there is no risk to count by: give it predict=")
    predict, metrics, inner = task.predict, task.metrics, jnp.asarray(edges[1:-1], jnp.float32)

    def counts(params: Params, batch: Batch) -> dict[str, Array]:
        result = dict(metrics(params, batch)) if metrics else {}
        where = jnp.searchsorted(inner, (risk or _risk)(predict(params, batch)), side="right")
        ill = batch[outcome] == 1
        for b in range(len(edges) - 1):
            result[f"ill_{b}"] = ((where == b) & ill).astype(jnp.float32)
            result[f"well_{b}"] = ((where == b) & ~ill).astype(jnp.float32)
        return result

    added_names = names(edges)
    ranges = (*task.ranges, *((name, 0, 1) for name in added_names))
    return task._replace(metrics=counts, ranges=ranges, people=(*task.people, *added_names))


def of(evaluation: Evaluation, edges: np.ndarray, sites: Sequence[str] | None = None) -> Counted:
    """The counts in an evaluation: of each site that reports all of them, and of these sites together.

    `sites`: their names, in the order of the evaluation. Raises ValueError where the evaluation has no such
    counts, or no site reports them.
    """
    if lacking := [name for name in names(edges) if name not in evaluation.clients]:
        raise ValueError(
            f"the evaluation has no {lacking[0]!r}: build the task by counted.counting(task, edges), with these "
            f"{len(edges)} edges, and let the sites' policies name its metrics"
        )
    site_names = [str(i) for i in range(len(evaluation.sizes))] if sites is None else list(map(str, sites))
    shares = np.stack([evaluation.clients[name] for name in names(edges)])  # [2 G, N]
    each = {}
    for i, name in enumerate(site_names):
        people = np.rint(shares[:, i] * evaluation.sizes[i])
        doubted = any(name in evaluation.without.get(one, {}) for one in names(edges))
        if np.isfinite(people).all() and not doubted:
            each[name] = Counts(people[::2].astype(np.int64), people[1::2].astype(np.int64))
    if not each:
        raise ValueError("no site tells its counts: do their policies name them (leaving.fields)?")
    return Counted(added(each.values()), each, tuple(name for name in site_names if name not in each))


def _risk(outputs: Array) -> Array:
    """The probability of the outcome, from a logit or from two classes' logits."""
    if outputs.ndim == 1:
        return jax.nn.sigmoid(outputs)
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        return jax.nn.sigmoid(outputs[:, 1] - outputs[:, 0])
    raise ValueError(
        f"the task predicts {list(outputs.shape[1:])} numbers an example: say by risk= which probability is meant"
    )


def _check(edges: np.ndarray) -> None:
    values = np.asarray(edges, float)
    if (
        values.ndim != 1
        or len(values) < 3
        or values[0] != 0
        or values[-1] < 1
        or (np.diff(values) <= 0).any()
    ):
        raise ValueError(
            f"edges= are three or more that ascend from 0 to 1, such as ranks.grid(10), got {list(values.ravel()[:5])}"
        )
