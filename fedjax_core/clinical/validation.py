"""Validation at hospitals that a model never saw: leave one out, fit on the others, judge there, and pool.

Internal-external cross-validation: each site is left out once. An effect of each site (AUROC or C-index by
their log odds, a calibration intercept or slope as it is) is pooled with a random effect of the site, and the
prediction interval is for a hospital that is not among these: mean -+ t sqrt(tau2 + var(mean)). Steyerberg
and Harrell, J Clin Epidemiol 69, 2016; Debray et al., BMJ 356:i6460, 2017.

Where sites differ by no more than their own errors, the prediction interval is too short. Of 12 sites that
differ by 0.2, with errors of 0.1 to 0.25, it held 89 % of new ones; where they differ by 0.5, 94 %. Partlett
and Riley, Statistics in Medicine 36, 2017, find the same.

`cross_site` judges every model at every site. Fitting and judging are functions that the caller gives, so
that both run over a simulator, a federation or plain tables alike.

>>> means = {"a": 0.8, "b": 0.7, "c": 0.9, "d": 0.75}
>>> found = leave_one_out(list(means), fit=lambda others: others, judge=lambda model, site: Judged(means[site], 0.02), scale="logit")
>>> f"{found.estimate:.3f}", len(found.left_out)
('0.795', 4)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from scipy.special import expit, logit

from fedjax_core.clinical.performance import Estimate
from fedjax_core.stats.meta import Meta, Method, meta

Model = TypeVar("Model")
Scale = Literal["logit", "identity"]


class Judged(NamedTuple):
    """A number at one site with its standard error, on the number's own scale; NaN where the site has
    none."""

    value: float
    standard_error: float


class LeftOut(NamedTuple):
    """Each site's result of the model that was fitted without it, the mean, and the prediction for a new
    site."""

    left_out: dict[str, Estimate]  # each site's own, with its 95 % interval
    estimate: float  # the mean over sites
    interval: tuple[float, float]  # 95 % for the mean
    prediction_interval: tuple[float, float]  # 95 % for a new hospital; NaN for fewer than three sites
    without: dict[str, str]  # sites that are not in the mean, and why
    meta: Meta  # on the scale on which it was pooled


def leave_one_out(
    sites: Sequence[str],
    fit: Callable[[list[str]], Model],
    judge: Callable[[Model, str], Judged],
    *,
    scale: Scale = "identity",
    method: Method = "reml",
    hksj: bool = True,
) -> LeftOut:
    """Leaves each site out once: fits on the others and judges there; pools on the scale, and predicts for a
    new hospital.

    Raises ValueError for fewer than two sites with a number.
    """
    if len(set(sites)) != len(sites) or len(sites) < 2:
        raise ValueError(
            f"to leave one out takes at least two sites with names of their own, got {list(sites)}"
        )
    return pooled(
        {site: judge(fit([each for each in sites if each != site]), site) for site in sites},
        scale=scale,
        method=method,
        hksj=hksj,
    )


def pooled(
    judged: Mapping[str, Judged], *, scale: Scale = "identity", method: Method = "reml", hksj: bool = True
) -> LeftOut:
    """The mean of the sites' numbers, with a random effect of the site; `scale="logit"` is for numbers
    between 0 and 1."""
    if scale not in ("logit", "identity"):
        raise ValueError(f'scale={scale!r} is not known: "logit" or "identity"')
    back: Callable[[float], float] = (lambda x: float(expit(x))) if scale == "logit" else float
    effects: dict[str, tuple[float, float]] = {}
    shown, without = {}, {}
    for site, each in judged.items():
        why = _missing(each, scale)
        if why:
            without[site] = why
            shown[site] = Estimate(each.value, np.nan, np.nan, why)
            continue
        value, error = each.value, each.standard_error
        if scale == "logit":  # the delta method
            value, error = float(logit(value)), error / (value * (1 - value))
        effects[site] = (value, error**2)
        shown[site] = Estimate(each.value, back(value - 1.959964 * error), back(value + 1.959964 * error))
    if len(effects) < 2:
        raise ValueError(f"fewer than two sites can tell: {without}")
    values, variances = zip(*effects.values(), strict=True)
    mean = meta(values, variances, method, hksj=hksj, labels=list(effects))
    ends = [(back(low), back(high)) for low, high in (mean.interval, mean.prediction_interval)]
    return LeftOut(shown, back(mean.estimate), ends[0], ends[1], without, mean)


def cross_site(
    models: Mapping[str, Any], sites: Sequence[str], judge: Callable[[Any, str], float]
) -> np.ndarray:
    """Every model judged at every site, [models, sites]: a column shows what a site gains from the others'
    data."""
    return np.array([[judge(model, site) for site in sites] for model in models.values()], float).reshape(
        len(models), len(sites)
    )


def _missing(each: Judged, scale: Scale) -> str:
    if not np.isfinite(each.value):
        return "not defined there"
    if not np.isfinite(each.standard_error) or each.standard_error <= 0:
        return "no standard error there"
    return "0 or 1 has no log odds" if scale == "logit" and not 0 < each.value < 1 else ""
