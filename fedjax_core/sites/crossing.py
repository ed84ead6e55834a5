"""Cross-site evaluation: every model at every site, as sums that the sites count on their own examples.

    for each model:   params  ─score─►  every site  ─►  {metric: sum}, examples       a site that does not answer is a hole with its reason

The federation's model beside those that sites trained alone, each where it was made and elsewhere: what tells a hospital what it gains. One
model is on its way at a time, so that no site or coordinator holds more than one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_core.metrics import CrossEvaluation, crossed
from fedjax_core.sites.collect import Collector
from fedjax_core.sites.forms import kinds
from fedjax_core.sites.reports import NO_METRICS, number_of
from fedjax_core.sites.request import Requests
from fedjax_core.types import Params


def cross_evaluate(
    models: Mapping[str, Params], like: Params, number: int, requests: Requests, collector: Collector, sizes: np.ndarray
) -> CrossEvaluation:
    """Every model at every site; raises before anything is sent where a model has not the shapes of `like`."""
    for name, params in models.items():
        if odd := sorted(kinds(params).items() ^ kinds(like).items()):
            raise ValueError(
                f"model {name!r} is not one of this federation's task: {odd[0][0]} differs in being there, in shape or in dtype"
            )
    found: dict[tuple[int, int], tuple[int, Mapping[str, float]] | str] = {}
    collector.begin(number)
    for m, params in enumerate(models.values()):
        asked = requests.write("score", number, to=collector.names, body={"params": params})
        replies = collector.collect(asked, number, list(range(len(sizes))))
        for at in range(len(sizes)):
            found[m, at] = _read(replies[at].header.fields) if at in replies else collector.hearing.reasons.get(at, "no reply")
    return crossed(list(models), collector.names, found)


def _read(fields: Mapping[str, Any]) -> tuple[int, Mapping[str, float]] | str:
    examples = fields.get("examples")
    if type(examples) is not int or examples < 1:
        return "its reply lacks the number of examples"
    return examples, {name: number_of(value) for name, value in fields.items() if name not in NO_METRICS}
