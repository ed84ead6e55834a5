"""Performance of a model with a yes-or-no outcome at each hospital: four metrics with 95 % intervals.

    auroc        the chance that a patient with the outcome was given a higher risk than one without; ties count half
    accuracy     right at the threshold (default 0.5)
    brier        mean squared gap between risk and outcome
    calibration  expected calibration error: patients in ten equal-width bins of risk, |mean risk - share with
                 the outcome| in each, averaged over patients

Each comes with a 95 % interval: the middle 95 % over patients drawn again with replacement (Efron &
Tibshirani, "An Introduction to the Bootstrap", 1993). Where every drawn set gives the same value (14 right of
14) that interval would be a point, as if 14 patients proved a perfect model; Wilson's score interval for a
share and Newcombe's for an AUROC (Statistics in Medicine 25, 2006) then take its place, marked *. The
calibration error and its interval are biased upwards where patients are few: compare methods on the same
patients, not hospitals of different size.

An undefined number is a - with its reason: a hospital without patients, risks that are NaN, or one outcome
only. A hospital whose risks are not numbers is left out of the row of all hospitals, which says so.

>>> found = assess(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]), resamples=200)
>>> found["auroc"].value, found["accuracy"].value
(0.75, 0.5)
>>> print(assess(np.ones(3), np.full(3, 0.8))["auroc"])
-
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from fedjax_core.data.clients import Clients
from fedjax_core.lanes.evaluate import predict
from fedjax_core.task import Task
from fedjax_core.types import Params

METRICS = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "brier": "Brier score",
    "calibration": "calibration error",
}
ALL = "all hospitals"
_Z = 1.959964  # the normal distribution's, for 95 %
# Of drawn sets that are evaluated together: 16 million patients' counts take 4 such arrays.
_DRAWN_BYTES = 32 << 20


class Predictions(NamedTuple):
    """A model's risks for some patients, and their outcomes."""

    outcome: np.ndarray  # [n], 0 or 1
    risk: np.ndarray  # [n], probability of 1


class Estimate(NamedTuple):
    """A number with its 95 % interval; NaN where there is none. `note` says why, or which interval it is if
    not the bootstrap's."""

    value: float
    low: float
    high: float
    note: str = ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        interval = "" if np.isnan(self.low) else f" ({self.low:.3f}-{self.high:.3f})"
        return f"{self.value:.3f}{interval}{'*' if self.note else ''}"

    def noted(self, note: str) -> "Estimate":
        """The same estimate with one more note."""
        return self._replace(note=f"{self.note}; {note}" if self.note else note)

    @property
    def is_score(self) -> bool:
        """Whether the interval is a score interval, and not the bootstrap's."""
        return "score interval" in self.note and not np.isnan(self.low)


Assessment = Mapping[str, Mapping[str, Estimate]]  # {hospital: {metric: Estimate}}, `ALL` comes last


def predictions(task: Task, params: Params, clients: Clients) -> dict[str, Predictions]:
    """{hospital's id: outcomes and the model's risks of its patients}; `task` predicts one logit a patient
    (`models.logistic`)."""
    logits = np.asarray(predict(task, params, clients), np.float64)
    if logits.ndim != 1:
        raise ValueError(
            f"the report is for one logit a patient, but the task predicts {logits.shape[1:]}: use classes=1"
        )
    parts = np.split(expit(logits), clients.offsets[1:-1])
    return {
        str(id): Predictions(clients[i]["y"], risk)
        for i, (id, risk) in enumerate(zip(clients.ids, parts, strict=True))
    }


def by_hospital(
    predictions: Mapping[str, Predictions], *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """`assess` for each hospital, then for all their patients together under `ALL`.

    A hospital whose risks are not numbers has - in its row; `ALL` leaves it out and names it."""
    if not predictions or ALL in predictions:
        raise ValueError(
            f"a report needs hospitals, of which none has the name {ALL!r}: that row is of all of them; got {list(predictions)[:5]}"
        )
    odd = [name for name, each in predictions.items() if not np.isfinite(each.risk).all()]
    rows = {
        name: _missing("the model gives risks that are not numbers")
        if name in odd
        else assess(*each, resamples=resamples, seed=seed)
        for name, each in predictions.items()
    }
    whole = [each for name, each in predictions.items() if name not in odd]
    everybody = (
        assess(*joined(dict(enumerate(whole))), resamples=resamples, seed=seed)
        if whole
        else _missing("no hospital has risks")
    )
    without = f"without {', '.join(odd)}, for whom the model gives risks that are not numbers"
    return rows | {
        ALL: {name: one.noted(without) for name, one in everybody.items()} if odd and whole else everybody
    }


def joined(predictions: Mapping[Any, Predictions]) -> Predictions:
    """The patients of all hospitals together."""
    return Predictions(*(np.concatenate(parts) for parts in zip(*predictions.values(), strict=True)))


def assess(
    outcome: np.ndarray,
    risk: np.ndarray,
    *,
    threshold: float = 0.5,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The four metrics of one group of patients, each with its interval; the same seed draws the same
    patients for every model.

    Without patients each is -. Memory does not grow with `resamples`: drawn sets are evaluated a few at a
    time."""
    outcome, risk = np.asarray(outcome, float), np.asarray(risk, float)
    check(outcome, risk)
    if not len(outcome):
        return _missing("no patients")
    rows: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "auroc": _auroc_of(outcome, risk),
        "accuracy": lambda counts: counts @ ((risk > threshold) == outcome) / len(risk),
        "brier": lambda counts: counts @ (risk - outcome) ** 2 / len(risk),
        "calibration": _calibration_of(outcome, risk, bins),
    }
    draw, equal = np.random.default_rng(seed), np.full(len(risk), 1 / len(risk))
    together, drawn = max(1, _DRAWN_BYTES // (8 * len(risk))), {name: np.empty(resamples) for name in rows}
    for first in range(0, resamples, together):
        counts = draw.multinomial(len(risk), equal, size=min(together, resamples - first))
        for name, metric in rows.items():
            drawn[name][first : first + len(counts)] = metric(counts)
    once = np.ones((1, len(risk)), int)
    estimates = {name: _estimate(float(metric(once)[0]), drawn[name]) for name, metric in rows.items()}
    ill, well = int(outcome.sum()), int(len(outcome) - outcome.sum())
    # Both variances are the same at 1 - share.
    estimates["accuracy"] = _or_score(
        estimates["accuracy"], "Wilson", lambda off: off**2 - _Z**2 * off * (1 - off) / len(outcome)
    )
    estimates["auroc"] = _or_score(
        estimates["auroc"], "Newcombe", lambda off: off**2 - _Z**2 * _auroc_variance(off, ill, well)
    )
    return estimates


def calibration_curve(
    predictions: Predictions, groups: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean risk, share with the outcome, patients) [at most groups], patients sorted by risk and cut into
    groups of nearly equal size.

    Patients of the same risk are in one group, so that the order in which patients are stored does not
    matter. Those with risks that are not numbers are left out.
    """
    known = np.isfinite(predictions.risk)
    predictions = Predictions(np.asarray(predictions.outcome)[known], np.asarray(predictions.risk)[known])
    _, tied, size = np.unique(predictions.risk, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2  # the middle rank of patients with the same risk
    group = np.minimum((middle * groups / max(1, len(predictions.risk))).astype(int), groups - 1)[tied]
    count = np.bincount(group, minlength=groups)
    here = count > 0
    risk, share = (
        np.bincount(group, np.asarray(values, float), groups)[here] / count[here]
        for values in (predictions.risk, predictions.outcome)
    )
    return risk, share, count[here]


def wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval (low, high) for shares found in `count` patients each."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    # Rounding may put the last digit beyond the share.
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


def names_of(results: Mapping[str, Assessment]) -> list[str]:
    """The names of all rows of every method, in order of appearance, with `ALL` last."""
    if not results:
        raise ValueError(
            "a table or figure needs at least one method: {method: performance.by_hospital(...)}"
        )
    names = list(dict.fromkeys(name for assessment in results.values() for name in assessment))
    return [name for name in names if name != ALL] + [ALL] * (ALL in names)


def estimate(method: str, assessment: Assessment, hospital: str, metric: str) -> Estimate:
    """A method's estimate for a hospital: - with the reason where it was not assessed there; raises
    ValueError for an unknown metric."""
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}: a report has {', '.join(METRICS)}")
    if hospital not in assessment:
        return _missing(f"{method} was not assessed there")[metric]
    return assessment[hospital][metric]


def _missing(why: str) -> dict[str, Estimate]:
    return {name: Estimate(np.nan, np.nan, np.nan, why) for name in METRICS}


def check(outcome: np.ndarray, risk: np.ndarray) -> None:
    """Raises ValueError unless these are an outcome of 0 or 1 and a probability for each of the same
    people."""
    if outcome.shape != risk.shape or outcome.ndim != 1:
        raise ValueError(
            f"outcome and risk must be [n] for the same n patients, got shapes {outcome.shape} and {risk.shape}"
        )
    if not np.isin(outcome, (0, 1)).all():
        raise ValueError(f"outcome must be 0 or 1, found {sorted(set(np.unique(outcome)) - {0.0, 1.0})[:5]}")
    if not ((risk >= 0) & (risk <= 1)).all():  # also NaN
        raise ValueError(
            f"risk must be a probability between 0 and 1, found {risk[~((risk >= 0) & (risk <= 1))][:5]}: pass sigmoid(logit)"
        )


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, "not defined where all patients have the same outcome")
    defined = drawn[~np.isnan(drawn)]
    low, high = (
        (float(end) for end in np.percentile(defined, [2.5, 97.5])) if len(defined) else (value, value)
    )
    if high - low <= 1e-9:  # sums of the same numbers in another order differ in their last digits
        return Estimate(
            value, np.nan, np.nan, "no interval, for every drawn set of patients gives the same value"
        )
    # All drawn calibration errors may lie above the value.
    return Estimate(value, min(low, value), max(high, value))


def _or_score(estimate: Estimate, name: str, outside: Callable[[float], float]) -> Estimate:
    """The score interval where the bootstrap failed at 0 or 1: from the value to the nearest share that is
    1.96 deviations away.

    `outside(distance)`: the squared distance of a share from the value, less 1.96^2 times the variance at
    that share."""
    if not np.isnan(estimate.low) or estimate.value not in (0.0, 1.0):
        return estimate
    low, high = 0.0, 1.0  # ends of the distance, halved until float64 has no more digits
    for _ in range(53):
        middle = (low + high) / 2
        low, high = (low, middle) if outside(middle) > 0 else (middle, high)
    note = f"{name}'s score interval (a wider kind), for every drawn set of patients gives the same value"
    return Estimate(estimate.value, max(0.0, estimate.value - high), min(1.0, estimate.value + high), note)


def _auroc_variance(share: float, ill: int, well: int) -> float:
    half = (ill + well) / 2 - 1
    return (
        share
        * (1 - share)
        * (1 + half * (1 - share) / (2 - share) + half * share / (1 + share))
        / (ill * well)
    )


def _auroc_of(outcome: np.ndarray, risk: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The AUROC [S] of counts [S, n] of how often each patient is drawn; NaN where a drawn set has one
    outcome only."""
    order = np.argsort(risk)
    starts = np.flatnonzero(np.r_[True, np.diff(risk[order]) > 0])  # where groups of equal risk start
    ill_first = outcome[order].astype(int)

    def auroc(counts: np.ndarray) -> np.ndarray:
        sorted_ = counts[:, order]
        every = np.add.reduceat(sorted_, starts, axis=1)
        sorted_ *= ill_first
        ill = np.add.reduceat(sorted_, starts, axis=1)
        well = every - ill
        below = np.cumsum(well, axis=1) - well
        pairs = (ill.sum(axis=1) * well.sum(axis=1)).astype(float)
        return np.sum(ill * (below + well / 2), axis=1) / np.where(pairs > 0, pairs, np.nan)

    return auroc


def _calibration_of(outcome: np.ndarray, risk: np.ndarray, bins: int) -> Callable[[np.ndarray], np.ndarray]:
    """The calibration error [S] of counts [S, n] of how often each patient is drawn."""
    member = np.minimum((risk * bins).astype(int), bins - 1)[:, None] == np.arange(bins)  # [n, bins]
    gaps = member * (risk - outcome)[:, None]
    return lambda counts: np.abs(counts @ gaps).sum(axis=1) / len(risk)
