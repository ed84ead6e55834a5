"""`one_by_one`: `run_many` for a backend that runs one round at a time.

>>> from fedjax_core.metrics import Sum
>>> def run(state, cohort, donate):
...     return state + len(cohort), {"clients": Sum(np.float32(len(cohort)))}
>>> state, metrics = one_by_one(run, 0, [[1, 2], [3]])
>>> state, metrics["clients"].total.tolist()
(3, [2.0, 1.0])
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_core.metrics import stacked


def one_by_one(
    run: Callable[..., tuple[Any, dict[str, Any]]],
    state: Any,
    cohorts: Sequence[Any] | np.ndarray,
    *,
    donate: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Calls `run(state, cohort, donate=...)` for one cohort after another: (state, metrics with leaves [R]).

    The first state is used up if `donate`, those in between always.
    """
    each_round = []
    for r, cohort in enumerate(cohorts):
        state, metrics = run(state, cohort, donate=donate or r > 0)
        each_round.append(metrics)
    return state, stacked(each_round)
