"""Cross-site evaluation: every model at every site, as sums over each site's own examples.

    for each model:   params  ─score─►  every site  ─►  {metric: sum}, examples; or a gap with its reason

It compares the federation's model with those that sites trained alone, at each site: so a hospital sees what
it gains. One model is under way at a time, so neither sites nor the coordinator hold more than one.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.evaluation import CrossEvaluation, crossed
from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.coordinator.pooling import Believed, believe, say
from fedjax_core.sites.coordinator.population import Population
from fedjax_core.sites.protocol.request import Record, Requests, RunContext
from fedjax_core.sites.wire.trees import leaf_specs
from fedjax_core.task import Range
from fedjax_core.types import Params


def cross_evaluate(
    models: Mapping[str, Params], like: Params, number: int, requests: Requests, collector: Collector, sizes: np.ndarray, *,
    ranges: Iterable[Range], withheld: Mapping[int, Collection[str]], record: Record,
) -> CrossEvaluation:  # fmt: skip
    """Evaluates every model at every site; raises early if a model lacks the shapes of `like`.

    `sizes`: the number of examples that each site evaluates on; `ranges`: of the task's metrics; `withheld`:
    the metrics that sites keep.
    """
    for name, params in models.items():
        if odd := sorted(leaf_specs(params).items() ^ leaf_specs(like).items()):
            raise ValueError(
                f"model {name!r} is not one of this federation's task: {odd[0][0] or 'its array'} differs in being there, in shape or in "
                "dtype; where an algorithm has several models, give each by itself, jax.tree.map(lambda x: x[0], params)"
            )
    results: dict[tuple[int, int], tuple[int, Mapping[str, float]] | str] = {}
    doubts: dict[tuple[int, int, str], str] = {}
    collector.begin(number, parts=max(1, len(models)))
    here = [position for position in range(len(sizes)) if position not in collector.unknown]
    for m, params in enumerate(models.values()):
        request = requests.write(
            "score", number, to=[collector.names[position] for position in here], body={"params": params}
        )
        replies = collector.collect(request, number, here)
        believed = believe(replies, sizes, ranges, withheld)
        say(believed, collector.names, lambda name, details: record(name, "set aside", number, details))
        reasons = {**collector.replies.reasons, **believed.reasons}
        for position in range(len(sizes)):
            results[m, position] = (
                believed.by_site[position]
                if position in believed.by_site
                else reasons.get(position, "no reply")
            )
        doubts |= {
            (m, position, name): why
            for (position, name), why in believed.doubts.items()
            if name in believed.by_site[position].totals
        }
    return crossed(list(models), collector.names, results, doubts)


def ask(
    algorithm: Algorithm,
    context: RunContext,
    positions: list[int],
    requests: Requests,
    collector: Collector,
    sites: Population,
    *,
    record: Record,
) -> tuple[Believed, dict[int, str]]:
    """Evaluates the state's model at these sites: (believed metrics, reasons of the sites without any)."""
    state, number = context.state, int(context.state.round)
    collector.begin(number, positions)
    reachable = [position for position in positions if position not in collector.unknown]
    body = {"params": state.params} if algorithm.personal is None else {"server": state.server}
    request = requests.write(
        "evaluate",
        number,
        to=[collector.names[position] for position in reachable],
        context=context,
        body=body,
    )
    replies = collector.collect(request, number, reachable)
    believed = believe(replies, sites.judged, algorithm.task.ranges, sites.withheld)
    say(believed, collector.names, lambda name, details: record(name, "set aside", number, details))
    reasons = collector.replies.reasons
    reasons |= believed.reasons
    collector.check_quorum(number, positions, list(believed.by_site), "evaluation")
    collector.absent.tell(f"the evaluation after round {number}", positions, set(believed.by_site), reasons)
    return believed, reasons
