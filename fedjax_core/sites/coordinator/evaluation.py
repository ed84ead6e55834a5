"""Cross-site evaluation: every model at every site, as sums that the sites count on their own examples.

    for each model:   params  ─score─►  every site  ─►  {metric: sum}, examples       a site that does not answer is a hole with its reason

The federation's model beside those that sites trained alone, each where it was made and elsewhere: what tells
a hospital what it gains. One model is on its way at a time, so that no site or coordinator holds more than
one.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.evaluation import CrossEvaluation, crossed
from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.coordinator.pooling import Believed, believe, say
from fedjax_core.sites.coordinator.population import Population
from fedjax_core.sites.protocol.request import About, Record, Requests
from fedjax_core.sites.wire.trees import leaf_specs
from fedjax_core.task import Range
from fedjax_core.types import Params


def cross_evaluate(
    models: Mapping[str, Params], like: Params, number: int, requests: Requests, collector: Collector, sizes: np.ndarray, *,
    ranges: Iterable[Range], withheld: Mapping[int, Collection[str]], record: Record,
) -> CrossEvaluation:  # fmt: skip
    """Every model at every site; raises before anything is sent where a model has not the shapes of `like`.

    `sizes`: how many examples each site said to be judged by; `ranges`: of the task's metrics; `withheld`:
    which of them sites said to keep.
    """
    for name, params in models.items():
        if odd := sorted(leaf_specs(params).items() ^ leaf_specs(like).items()):
            raise ValueError(
                f"model {name!r} is not one of this federation's task: {odd[0][0] or 'its array'} differs in being there, in shape or in "
                "dtype; where an algorithm has several models, give each by itself, jax.tree.map(lambda x: x[0], params)"
            )
    found: dict[tuple[int, int], tuple[int, Mapping[str, float]] | str] = {}
    doubts: dict[tuple[int, int, str], str] = {}
    collector.begin(number, parts=max(1, len(models)))
    here = [at for at in range(len(sizes)) if at not in collector.unknown]
    for m, params in enumerate(models.values()):
        asked = requests.write(
            "score", number, to=[collector.names[at] for at in here], body={"params": params}
        )
        replies = collector.collect(asked, number, here)
        believed = believe(replies, sizes, ranges, withheld)
        say(believed, collector.names, lambda name, about: record(name, "set aside", number, about))
        reasons = {**collector.replies.reasons, **believed.reasons}
        for at in range(len(sizes)):
            found[m, at] = believed.told[at] if at in believed.told else reasons.get(at, "no reply")
        doubts |= {
            (m, at, name): why
            for (at, name), why in believed.doubts.items()
            if name in believed.told[at].totals
        }
    return crossed(list(models), collector.names, found, doubts)


def ask(
    algorithm: Algorithm,
    about: About,
    who: list[int],
    requests: Requests,
    collector: Collector,
    sites: Population,
    *,
    record: Record,
) -> tuple[Believed, dict[int, str]]:
    """(what these sites tell of the state's model, each of its own where they keep one; why others of them do
    not)."""
    state, number = about.state, int(about.state.round)
    collector.begin(number, who)
    asked = [at for at in who if at not in collector.unknown]
    body = {"params": state.params} if algorithm.personal is None else {"server": state.server}
    request = requests.write(
        "evaluate", number, to=[collector.names[at] for at in asked], about=about, body=body
    )
    replies = collector.collect(request, number, asked)
    believed = believe(replies, sites.judged, algorithm.task.ranges, sites.withheld)
    say(believed, collector.names, lambda name, about: record(name, "set aside", number, about))
    reasons = collector.replies.reasons
    reasons |= believed.reasons
    collector.check_quorum(number, who, list(believed.told), "evaluation")
    collector.absent.tell(f"the evaluation after round {number}", who, set(believed.told), reasons)
    return believed, reasons
