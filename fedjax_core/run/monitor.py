"""Model selection: when to evaluate, which metric decides, and when to stop early.

>>> monitor = Monitor(every=5, metric="accuracy", mode="max")
>>> monitor.better(0.8, None), monitor.better(0.8, Best(10, 0.9)), monitor.better(float("nan"), None)
(True, False, False)
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.checks import at_least
from fedjax_core.data.clients import Clients
from fedjax_core.evaluation import NOT_TOLD

log = logging.getLogger("fedjax_core")

Evaluate = Clients | Callable[[Any, Any], Mapping[str, float]]
"""The clients to evaluate on, or a function (sim, state) -> {name: value}."""


class Best(NamedTuple):
    """The best evaluation so far."""

    round: int
    value: float


@dataclass(frozen=True)
class Monitor:
    """Settings of model selection: when a state is evaluated, on what, by which metric, and which of two is
    better."""

    every: int  # rounds; 0: never
    evaluate: Evaluate | None = None  # None: on the clients trained on
    metric: str = "loss"
    mode: str = "min"
    patience: int | None = None  # evaluations without a better one that end the run
    warned: set[Any] = field(default_factory=set, compare=False, repr=False)  # about whom, and why

    def __post_init__(self) -> None:
        at_least(0, evaluate_every=self.every)
        if self.mode not in ("min", "max"):
            raise ValueError(
                f'mode= says whether a small or a large {self.metric!r} is best: "min" or "max", got {self.mode!r}'
            )
        if (
            self.evaluate is not None
            and not isinstance(self.evaluate, Clients)
            and not callable(self.evaluate)
        ):
            raise TypeError(
                f"evaluate= must be fc.Clients or a function (sim, state) -> {{name: value}}, got {type(self.evaluate).__name__}; "
                "leave it out to evaluate on the clients trained on, or on those that sites hold out"
            )
        if self.patience is not None:
            at_least(1, patience=self.patience)
        if not self.every and (self.evaluate is not None or self.patience is not None):
            given = "evaluate" if self.evaluate is not None else "patience"
            raise ValueError(
                f"{given}= is given, but evaluate_every=0 never evaluates: set evaluate_every= to a number of rounds"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that change the answer: none where it cannot end the run."""
        if self.patience is None:
            return {}
        return {
            "metric": self.metric,
            "mode": self.mode,
            "every": self.every,
            "patience": self.patience,
            "on": self.evaluate,
        }

    def __call__(self, sim: Any, state: Any) -> dict[str, float]:
        """Evaluates a state: all metrics; raises where the one that decides is not among them."""
        metrics = (
            self.evaluate(sim, state)
            if callable(self.evaluate)
            else self._pooled(sim.evaluate(state, self.evaluate))
        )
        if wrong := sorted({"round", "kind"} & set(map(str, metrics))):
            raise ValueError(
                f"evaluate= gives a metric called {wrong[0]!r}, which every record has for its own: rename it"
            )
        if self.metric not in metrics:
            raise ValueError(
                f"best={self.metric!r} is not among the metrics of the evaluation: choose one of {list(metrics)}"
            )
        return {str(name): float(value) for name, value in metrics.items()}

    def _pooled(self, evaluation: Any) -> Mapping[str, float]:
        """The evaluation's metrics. Warns once which clients the deciding metric is without; raises where one
        client alone of several gives it."""
        without = dict(getattr(evaluation, "without", {}).get(self.metric, {}))
        silent = [name for name, why in without.items() if why == NOT_TOLD]
        if silent and np.count_nonzero(evaluation.sizes) - len(silent) < 2:
            raise ValueError(
                f"best={self.metric!r} would go by what one site alone tells, without {', '.join(silent)[:500]}: let their staff name it "
                f"in leaving.fields of their policies, or choose another of {list(evaluation.pooled)}"
            )
        if without and (reasons := frozenset(without.items())) not in self.warned:
            self.warned.add(reasons)
            names = "; ".join(f"{name}: {why}" for name, why in without.items())
            log.warning(
                "the best model is chosen by the %r of the others, without %d of all. %s",
                self.metric,
                len(without),
                names[:1500],
            )
        pooled: Mapping[str, float] = evaluation.pooled
        return pooled

    def better(self, value: float, than: Best | None) -> bool:
        """Whether the value is a new best; one that is not finite never is."""
        if not math.isfinite(value) or than is None:
            return math.isfinite(value)
        return value < than.value if self.mode == "min" else value > than.value
