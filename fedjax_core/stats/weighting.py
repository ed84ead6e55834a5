"""The effect of a treatment in the pooled rows by propensity weights, over sites; its errors account for the
estimated weights.

    e = P(treated | x), a logistic model of the pooled rows            w of the treated, of the others
    ate      1 / e,  1 / (1 - e)      of all people
    att      1,      e / (1 - e)      of those who are treated
    overlap  1 - e,  e                of those who might have had either: bounded weights (Li, Morgan and
                                      Zaslavsky, JASA 2018)

    effect = mu1 - mu0,  mu_a = sum w y / sum w of group a      its error by the sandwich of the stacked equations of (beta, mu1, mu0):
             A^-1 B A^-1',  A = -sum of slopes, B = sum of psi psi'     (Lunceford and Davidian, Statistics in Medicine 2004)

Weights balance the columns of the model, and nothing that was not measured. Overlap weights make these
columns' means equal.

>>> from fedjax_core.data.clients import Clients
>>> table = {"site": list("aaaabbbb"), "y": [5.0, 6, 3, 9, 2, 3, 6, 8], "t": [1, 1, 0, 1, 0, 0, 1, 0], "age": [1.0, 2, 1, 4, 1, 2, 3, 4]}
>>> found = treatment_effect("y, t ~ age", Clients.from_table(table, by="site"), weights="overlap")
>>> round(found.effect, 3), round(abs(found.smd_after["age"]), 9)
(1.729, 0.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from fedjax_core.stats.base import Limits, Source, Sums, TooFew, ask, total
from fedjax_core.stats.expressions import Expression, check, evaluate
from fedjax_core.stats.formula import read
from fedjax_core.stats.glm import GlmMoments, GlmStep, first_step, fit_steps, rows_of, unscaled
from fedjax_core.stats.inference import aligned
from fedjax_core.stats.survey import Missing, survey
from fedjax_core.stats.table import Table

Weights = Literal["ate", "att", "overlap"]
KINDS: Sequence[Weights] = ("ate", "att", "overlap")


@dataclass(frozen=True)
class Weighted:
    """The site half at one propensity model: weighted sums of both groups, and the sandwich of the equations
    at these means."""

    model: GlmStep
    """The propensity model of the treatment."""
    outcome: Expression
    weights: str
    means: tuple[float, ...]
    """(mu1, mu0)."""

    def __post_init__(self) -> None:
        check(self.outcome)
        if self.weights not in KINDS or len(self.means) != 2 or self.model.family != "binomial":
            raise ValueError(f"weights are {', '.join(KINDS)}, of a binomial model, with two means")

    @property
    def columns(self) -> tuple[str, ...]:
        return self.model.columns

    def sums(self, table: Table, limits: Limits) -> Sums:
        x, treated, offset = rows_of(self.model, table, limits)
        y = evaluate(self.outcome, table.complete(self.model.used))
        if not np.isfinite(y).all():
            raise ValueError(f"the outcome is not finite in {int((~np.isfinite(y)).sum())} rows")
        z = (x - np.array(self.model.shift)) / np.array(self.model.scale)
        e = expit(z @ np.array(self.model.beta) + offset)
        w, slope = _weights(self.weights, e)  # [rows, 2] each, of the treated and of the others
        group = np.stack([treated, 1 - treated], axis=1)
        whole = table.complete(self.model.used)
        for g in range(2):
            here = group[:, g] == 1
            limits.group(whole.person_ids[here], "people are of one treatment", self.model.used)
            limits.weights(w[here, g], whole.person_ids[here])
        if not limits.sum(y, whole.person_ids, "outcome"):
            raise TooFew("few people have most of the sum of the outcome")
        w, slope = w * group, slope * group
        gap = y[:, None] - np.array(self.means)
        psi = np.concatenate([z * (treated - e)[:, None], w * gap], axis=1)
        p = z.shape[1]
        bread = np.zeros((p + 2, p + 2))
        bread[:p, :p] = (z * (e * (1 - e))[:, None]).T @ z
        bread[p:, :p] = -(slope * gap).T @ z
        bread[p:, p:] = np.diag(w.sum(0))
        return {
            "rows": group.sum(0), "w": w.sum(0), "ww": (w**2).sum(0), "wy": w.T @ y, "y": group.T @ y,
            "x": group.T @ z, "xx": group.T @ z**2, "wx": w.T @ z, "bread": bread, "meat": psi.T @ psi,
        }  # fmt: skip


def _weights(kind: str, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [rows, 2] of the treated and of the others, and their slopes by eta."""
    one, zero, v = np.ones_like(e), np.zeros_like(e), e * (1 - e)
    odds = e / (1 - e)
    pairs = {
        "ate": (1 / e, 1 / (1 - e), -1 / odds, odds),
        "att": (one, odds, zero, odds),
        "overlap": (1 - e, e, -v, v),
    }
    a, b, slope_a, slope_b = pairs[kind]
    return np.stack([a, b], axis=1), np.stack([slope_a, slope_b], axis=1)


@dataclass(frozen=True, repr=False)
class TreatmentEffect:
    """The mean outcome of the treated less that of the others, both weighted."""

    effect: float
    standard_error: float
    means: tuple[float, float]
    """(of the treated, of the others), weighted."""
    crude: float
    """The effect without weights."""
    rows: tuple[int, int]
    effective_rows: tuple[float, float]
    """(sum w)^2 / sum w^2 of each group."""
    smd_before: dict[str, float]
    """{column of the model: standardised difference of its means}, without weights."""
    smd_after: dict[str, float]
    """With weights, by the same deviations."""
    propensity: dict[str, float]
    """Coefficients of the model of the treatment."""
    weights: Weights
    dropped: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        reach = float(norm.ppf(0.975)) * self.standard_error
        return self.effect - reach, self.effect + reach

    @property
    def p_value(self) -> float:
        """Two-sided p of no effect."""
        return float(2 * norm.sf(abs(self.effect) / self.standard_error))

    def __repr__(self) -> str:
        low, high = self.interval
        lines = [
            ["balance", "before", "after"],
            *([name, f"{x:.3f}", f"{self.smd_after[name]:.3f}"] for name, x in self.smd_before.items()),
        ]
        some = f"{self.rows[0]} treated (worth {self.effective_rows[0]:.1f}), {self.rows[1]} others (worth {self.effective_rows[1]:.1f})"
        summary = f"effect {self.effect:.4f} ({low:.4f} to {high:.4f}), p {self.p_value:.4f}; without weights {self.crude:.4f}"
        return f"{self.weights} weights: {some}\n{summary}\n\n{aligned(lines)}"


def treatment_effect(
    formula: str, source: Source, *, weights: Weights = "overlap", missing: Missing = "refuse"
) -> TreatmentEffect:
    """The effect of "outcome, treatment ~ covariates" over the rows of all clients or sites; treatment is 0
    or 1, or I(arm == 'new').

    Raises ValueError where values are missing (see `missing`), and `NoEstimate` where the covariates separate
    the treated from the others."""
    if weights not in KINDS:
        raise ValueError(f"weights={weights!r} is not known; there are {', '.join(KINDS)}")
    parsed = read(formula)
    if len(parsed.outcomes) != 2:
        raise ValueError(
            f"{formula!r} needs 'outcome, treatment ~ covariates', got {len(parsed.outcomes)} parts on its left"
        )
    known = survey(source, parsed.columns, parsed.categories, missing)
    design = parsed.design(known.kinds, known.levels)
    outcome, treatment = parsed.outcomes
    moments = GlmMoments(design, treatment, ["number", 0.0], tuple(known.kinds), "binomial")
    step, sums = first_step(source, moments, 1.0, parsed.outcome_names[1])
    if sums["y"] in (0, sums["rows"]):
        raise ValueError(
            f"the treatment {parsed.outcome_names[1]!r} is the same in every row, so there is nothing to compare"
        )
    fit = fit_steps(source, step)
    statistic = Weighted(replace(step, beta=tuple(fit.beta.tolist())), outcome, weights, (0.0, 0.0))
    weighted = total(ask(source, statistic))
    means = weighted["wy"] / weighted["w"]
    at_means = total(ask(source, replace(statistic, means=tuple(means.tolist()))))
    bread = np.linalg.inv(at_means["bread"])
    covariance = bread @ at_means["meat"] @ bread.T
    towards = np.append(np.zeros(len(design.names)), [1.0, -1.0])
    rows = weighted["rows"]
    mean = weighted["x"] / rows[:, None]
    spread = np.sqrt(
        ((weighted["xx"] / rows[:, None] - mean**2) * (rows / np.maximum(rows - 1, 1))[:, None]).mean(0)
    )
    kept = [i for i, name in enumerate(design.names) if name != "Intercept"]

    def differences(of: np.ndarray) -> dict[str, float]:
        return {design.names[i]: float((of[0, i] - of[1, i]) / spread[i]) if spread[i] else 0.0 for i in kept}

    raw, worth, even = (
        weighted["y"] / rows,
        weighted["w"] ** 2 / weighted["ww"],
        weighted["wx"] / weighted["w"][:, None],
    )
    return TreatmentEffect(
        float(means[0] - means[1]), float(np.sqrt(towards @ covariance @ towards)), (float(means[0]), float(means[1])),
        float(raw[0] - raw[1]), (int(rows[0]), int(rows[1])), (float(worth[0]), float(worth[1])), differences(mean), differences(even),
        dict(zip(design.names, (unscaled(step) @ fit.beta).tolist(), strict=True)), weights, known.dropped,
    )  # fmt: skip
