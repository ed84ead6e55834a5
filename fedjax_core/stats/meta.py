"""Meta-analysis: combines the effects of several studies or sites, each with its variance, and predicts the
effect at a new site.

    fixed   mu = sum w y / sum w,  w = 1 / v
    random  the same with w = 1 / (v + tau2);  tau2 by moments ("dl", DerSimonian and Laird 1986) or restricted likelihood ("reml")
    hksj    var(mu) = sum w (y - mu)^2 / ((k - 1) sum w), and Student's t of k - 1 (Hartung and Knapp 2001; Sidik and Jonkman 2002)
    I2      max(0, (Q - (k - 1)) / Q),  Q = sum (y - mu_fixed)^2 / v
    a new site's effect: mu -+ t(k - 2) sqrt(tau2 + var(mu))                                     (Higgins, Thompson and Spiegelhalter 2009)

>>> found = meta([0.1, 0.5, 0.9], [0.04, 0.01, 0.09], method="dl")
>>> round(found.tau2, 7), round(found.estimate, 7), round(found.standard_error, 7), round(found.i2, 6)
(0.0621429, 0.4574193, 0.1818953, 0.639706)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, norm, t

from fedjax_core.stats.inference import aligned

Method = Literal["fixed", "dl", "reml"]


@dataclass(frozen=True, repr=False)
class Meta:
    """The mean effect, its uncertainty, and the heterogeneity between sites."""

    estimate: float
    standard_error: float
    tau2: float
    """Variance of the effects of sites, beyond that of their estimates."""
    i2: float
    """The share of the variance between estimates that is more than chance."""
    q: float
    effects: np.ndarray  # [K]
    variances: np.ndarray  # [K]
    weights: np.ndarray  # [K], which sum to 1
    method: Method
    hksj: bool
    labels: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % for the mean effect."""
        reach = float(self._reach(len(self.effects) - 1 if self.hksj else None)) * self.standard_error
        return self.estimate - reach, self.estimate + reach

    @property
    def p_value(self) -> float:
        """Two-sided p of a mean effect of 0."""
        z = abs(self.estimate) / self.standard_error
        return float(2 * (t.sf(z, len(self.effects) - 1) if self.hksj else norm.sf(z)))

    @property
    def prediction_interval(self) -> tuple[float, float]:
        """95 % for the effect at a new site; NaN for fewer than three effects."""
        if len(self.effects) < 3:
            return float("nan"), float("nan")
        reach = float(self._reach(len(self.effects) - 2)) * float(np.sqrt(self.tau2 + self.standard_error**2))
        return self.estimate - reach, self.estimate + reach

    @property
    def heterogeneity_p(self) -> float:
        """p of Q, if all sites had one effect."""
        return float(chi2.sf(self.q, len(self.effects) - 1))

    def table(self) -> str:
        """The effects, their weights and the mean, as the numbers of a forest plot."""
        lines = [["", "effect", "95 % interval", "weight"]]
        for label, y, v, w in zip(self.labels, self.effects, self.variances, self.weights, strict=True):
            reach = 1.959963984540054 * np.sqrt(v)
            lines.append([label, f"{y:.4f}", f"{y - reach:.4f} to {y + reach:.4f}", f"{w:.1%}"])
        for name, (low, high) in (("mean", self.interval), ("a new site", self.prediction_interval)):
            lines.append([name, f"{self.estimate:.4f}", f"{low:.4f} to {high:.4f}", ""])
        return aligned(lines)

    def __repr__(self) -> str:
        how = self.method + (", Hartung-Knapp-Sidik-Jonkman" if self.hksj else "")
        return (
            f"meta-analysis ({how}) of {len(self.effects)} effects: {self.estimate:.4f}, standard error {self.standard_error:.4f}, "
            f"p {self.p_value:.4f}\ntau2 {self.tau2:.4f}, I2 {self.i2:.1%}, Q {self.q:.2f} (p {self.heterogeneity_p:.4f})\n\n{self.table()}"
        )

    @staticmethod
    def _reach(df: int | None) -> Any:
        return norm.ppf(0.975) if df is None else t.ppf(0.975, df)


def meta(
    effects: Sequence[float],
    variances: Sequence[float],
    method: Method = "reml",
    *,
    hksj: bool = False,
    labels: Any = None,
) -> Meta:
    """The mean of K effects with these variances (squared standard errors); raises ValueError where they are
    not finite, or not above 0."""
    y, v = np.asarray(effects, np.float64), np.asarray(variances, np.float64)
    if y.ndim != 1 or y.shape != v.shape or not len(y):
        raise ValueError(f"effects and variances need one length, at least 1, got {y.shape} and {v.shape}")
    if not np.isfinite(y).all() or not (np.isfinite(v) & (v > 0)).all():
        raise ValueError(
            "an effect is not finite, or a variance is not above 0: leave out sites that could not estimate it"
        )
    if method not in ("fixed", "dl", "reml"):
        raise ValueError(f'method={method!r} is not known: "fixed", "dl" or "reml"')
    if hksj and len(y) < 2:
        raise ValueError("hksj=True goes by the spread of the effects, and there is one alone")
    mu = float(np.sum(y / v) / np.sum(1 / v))
    q, df = float(np.sum((y - mu) ** 2 / v)), len(y) - 1
    tau2 = 0.0 if method == "fixed" or not df else _moments(q, v) if method == "dl" else _reml(y, v)
    w = 1 / (v + tau2)
    estimate = float(np.sum(w * y) / np.sum(w))
    variance = float(np.sum(w * (y - estimate) ** 2) / (df * np.sum(w))) if hksj else float(1 / np.sum(w))
    named = tuple(f"site {i + 1}" for i in range(len(y))) if labels is None else tuple(map(str, labels))
    return Meta(
        estimate,
        float(np.sqrt(variance)),
        tau2,
        max(0.0, (q - df) / q) if q else 0.0,
        q,
        y,
        v,
        w / w.sum(),
        method,
        hksj,
        named,
    )


def _moments(q: float, v: np.ndarray) -> float:
    w = 1 / v
    return max(0.0, (q - len(v) + 1) / float(np.sum(w) - np.sum(w**2) / np.sum(w)))


def _reml(y: np.ndarray, v: np.ndarray) -> float:
    """tau2 where the restricted likelihood is largest, at 0 or inside."""

    def loss(tau2: float) -> float:
        w = 1 / (v + tau2)
        mu = np.sum(w * y) / np.sum(w)
        return float(-np.sum(np.log(w)) + np.log(np.sum(w)) + np.sum(w * (y - mu) ** 2))

    most = max(float(np.var(y)) * 10, float(v.max())) + 1e-12
    starts = np.concatenate([[0.0], np.geomspace(most * 1e-8, most, 60)])
    i = int(np.argmin([loss(one) for one in starts]))
    if i == 0 and loss(starts[1] / 2) >= loss(0.0):
        return 0.0
    tau2 = float(
        minimize_scalar(
            loss,
            bounds=(starts[max(0, i - 1)], starts[min(i + 1, 60)]),
            method="bounded",
            options={"xatol": 1e-14},
        ).x
    )
    for _ in range(50):  # the fixed point of the score, exact where the search has found the place
        w = 1 / (v + tau2)
        mu = np.sum(w * y) / np.sum(w)
        after = max(0.0, float(np.sum(w**2 * ((y - mu) ** 2 - v)) / np.sum(w**2) + 1 / np.sum(w)))
        if abs(after - tau2) <= 1e-15 * (1 + tau2):
            break
        tau2 = after
    return tau2
