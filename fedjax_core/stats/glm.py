"""Generalised linear models over sites: the fit of the pooled rows, from sums that each site computes.

    site:     g = X' s,  H = X' diag(w) X,  log-likelihood, deviance        s, w of families.py, at eta = X beta + offset
    centre:   beta <- beta + (sum H)^-1 sum g                               Newton's method
    errors:   (sum E[H])^-1 dispersion;  robust: H^-1 (sum of s_i^2 x_i x_i') H^-1;  by clusters: H^-1 (sum_c g_c g_c') H^-1

Nelder and Wedderburn, "Generalized Linear Models", JRSS A 1972. Liang and Zeger, Biometrika 1986, for
clusters.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabbb"), "y": [0, 1, 1, 2, 5], "x": [0.0, 0, 1, 1, 1]}, by="site")
>>> fit = glm("y ~ x", clients, family="poisson")
>>> {name: round(b, 4) for name, b in fit.coefficients.items()}  # log(1/2), and log(8/3) - log(1/2)
{'Intercept': -0.6931, 'x': 1.674}
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fedjax_core.stats import families
from fedjax_core.stats.base import Limits, Source, Sums, ask, count, total
from fedjax_core.stats.expressions import Expression, check, columns, evaluate, parse
from fedjax_core.stats.families import FAMILIES
from fedjax_core.stats.formula import Design, Formula, read
from fedjax_core.stats.inference import Estimates
from fedjax_core.stats.newton import Maximum, NoEstimate, inverse, maximise
from fedjax_core.stats.survey import Missing, Surveyed, survey, truth
from fedjax_core.stats.table import Table

Family = Literal["binomial", "gaussian", "poisson", "negative binomial"]


@dataclass(frozen=True)
class GlmMoments:
    """The site half of scaling: sums of a model's columns. They scale the steps, and no result depends on
    them."""

    design: Design
    outcome: Expression
    offset: Expression
    used: tuple[str, ...]
    family: str

    def __post_init__(self) -> None:
        check(self.outcome), check(self.offset)
        if self.family not in FAMILIES:
            raise ValueError(f"there is no family {self.family!r}")

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        x, y, offset = rows_of(self, table, limits)
        wrong = families.wrong(self.family, y).sum()
        return {
            "rows": count(len(y)),
            "x": x.sum(0),
            "xx": (x**2).sum(0),
            "y": y.sum(),
            "offset": offset.sum(),
            "wrong": count(wrong),
        }


@dataclass(frozen=True)
class GlmStep:
    """The site half of a Newton step: sums at beta, for columns (x - shift) / scale."""

    design: Design
    outcome: Expression
    offset: Expression
    used: tuple[str, ...]
    family: str
    alpha: float
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    beta: tuple[float, ...]
    scores: str = ""
    """The units whose squared scores are summed: "rows", the column of clusters, or "" for none."""

    def __post_init__(self) -> None:
        check(self.outcome), check(self.offset)
        if self.family not in FAMILIES or not self.alpha > 0:
            raise ValueError(f"there is no family {self.family!r} with alpha {self.alpha}")
        if len({len(self.shift), len(self.scale), len(self.beta), len(self.design.names)}) > 1:
            raise ValueError("beta, shift and scale need a number for each column of the design")

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        x, y, offset = rows_of(self, table, limits)
        x = (x - np.array(self.shift)) / np.array(self.scale)
        each = families.rows(self.family, y, x @ np.array(self.beta) + offset, self.alpha)
        limits.weights(each.expected, table.complete(self.used).person_ids)
        sums: dict[str, np.ndarray] = {"gradient": x.T @ each.score, "rows": count(len(y))}
        for name, weights in (("information", each.slope), ("expected", each.expected)):
            sums[name] = (x * weights[:, None]).T @ x
        sums |= {name: getattr(each, name).sum() for name in ("log_likelihood", "deviance", "pearson")}
        if self.family == "gaussian":
            sums["log_likelihood"] = -0.5 * each.deviance.sum()
        if self.scores:
            sums |= _squares(x * each.score[:, None], self.scores, table.complete(self.used), limits)
        return sums


def rows_of(
    statistic: GlmMoments | GlmStep, table: Table, limits: Limits
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(X, y, offset) of the complete rows, after the site's limits are checked."""
    table = table.complete(statistic.used)
    x, y, offset = (
        statistic.design.matrix(table),
        evaluate(statistic.outcome, table),
        evaluate(statistic.offset, table),
    )
    limits.group(table.person_ids, "people", statistic.used)
    limits.model(table, statistic.design, x, y, statistic.used)
    return x, y, offset


def _squares(scores: np.ndarray, of: str, table: Table, limits: Limits) -> dict[str, np.ndarray]:
    if of == "rows":
        return {"squares": scores.T @ scores, "clusters": count(len(scores))}
    labels, places = np.unique(table.labels(of), return_inverse=True)
    sums = np.zeros((len(labels), scores.shape[1]))
    np.add.at(sums, places, scores)
    for i, label in enumerate(labels.tolist()):
        limits.group(table.person_ids[places == i], f"people are of cluster {label!r}", (of,))
    return {"squares": sums.T @ sums, "clusters": count(len(labels))}


@dataclass(frozen=True, repr=False)
class Glm(Estimates):
    """A fitted generalised linear model, with the requested `standard_errors` and those with sites as
    clusters."""

    cluster_covariance: np.ndarray
    """[P, P] robust covariance with each site a cluster, and the small-sample factor of statsmodels; NaN for
    a single site."""
    deviance: float
    dispersion: float
    """Pearson's chi-square over its degrees of freedom where the family has a dispersion, else 1."""
    pearson: float
    log_likelihood: float
    rows: int
    dropped: int
    sites: int
    rounds: int
    alpha: float | None = None

    @property
    def cluster_standard_errors(self) -> dict[str, float]:
        """{name: standard error, robust to rows of a site being alike}."""
        return self._named(np.sqrt(np.diag(self.cluster_covariance)))

    @property
    def df_residual(self) -> int:
        """Residual degrees of freedom: rows less coefficients."""
        return self.rows - len(self.names)

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return 2 * len(self.names) - 2 * self.log_likelihood

    def facts(self) -> list[str]:
        """Further facts about the fit, a line each."""
        left = f", {self.dropped} with missing values left out" if self.dropped else ""
        return [
            f"{self.rows} rows of {self.sites} sites{left}; {self.rounds} rounds",
            f"deviance {self.deviance:.4f} on {self.df_residual} degrees of freedom, dispersion {self.dispersion:.4f}, AIC {self.aic:.2f}",
        ]


def glm(
    formula: str,
    source: Source,
    family: Family = "gaussian",
    *,
    offset: str | None = None,
    alpha: float = 1.0,
    errors: Literal["model", "robust", "cluster"] = "model",
    cluster: str = "site",
    site_effects: Literal["none", "fixed"] = "none",
    missing: Missing = "refuse",
) -> Glm:
    """The maximum-likelihood fit over the rows of all clients, or of all sites of a federation, as if they
    were pooled.

    `offset`: a column, or an expression such as "log(days)", added to eta. `alpha`: the negative binomial's,
    var y = m + alpha m^2. `errors`: by the model; "robust" to a wrong variance (HC0); or "cluster", by the
    column `cluster`, each of whose clusters lies within one site ("site": each site is one), times G/(G-1)
    (n-1)/(n-P). `site_effects="fixed"` adds C(site) to the formula. Raises ValueError where values are
    missing (see `missing`) or do not fit the family, and `NoEstimate` where there is no finite estimate."""
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not known; there are {', '.join(FAMILIES)}")
    if errors not in ("model", "robust", "cluster"):
        raise ValueError(f'errors={errors!r} is not known: "model", "robust" or "cluster"')
    if site_effects not in ("none", "fixed"):
        raise ValueError(
            f'site_effects={site_effects!r} is not known: "none" or "fixed"; for a random intercept use fc.stats.lmm'
        )
    if not (isinstance(alpha, int | float) and alpha > 0):
        raise ValueError(f"alpha={alpha!r} must be above 0; with 0 the negative binomial is family='poisson'")
    parsed = read(formula if site_effects == "none" else f"{formula} + C(site)")
    grouped = (cluster,) if errors == "cluster" and cluster not in ("site", "_site") else ()
    moments, known = prepared(parsed, source, family, offset, missing, grouped)
    step = first_step(source, moments, float(alpha), parsed.outcome_names[0])[0]
    scores = {"model": "", "robust": "rows", "cluster": "".join(grouped)}[errors]
    fit = fit_steps(source, step)
    squares = (
        total(ask(source, replace(step, beta=tuple(fit.beta.tolist()), scores=scores))) if scores else None
    )
    return _fitted(formula, step, fit.site_sums, fit.sums, fit.beta, fit.rounds, known, errors, squares)


def prepared(
    formula: Formula,
    source: Source,
    family: str,
    offset: str | None,
    missing: Missing,
    more: Sequence[str] = (),
) -> tuple[GlmMoments, Surveyed]:
    """A model's first request, and the survey of its columns; `more`: further columns that are used."""
    if len(formula.outcomes) != 1:
        raise ValueError(f"{formula.text!r} needs one outcome before the ~, got {len(formula.outcomes)}")
    offset_expression: Expression = parse(offset) if offset else ["number", 0.0]
    known = survey(
        source, (*formula.columns, *columns(offset_expression), *more), formula.categories, missing
    )
    return GlmMoments(
        formula.design(known.kinds, known.levels),
        truth(formula.outcomes[0], known),
        offset_expression,
        tuple(known.kinds),
        family,
    ), known


def fit_steps(source: Source, step: GlmStep) -> Maximum:
    """Maximises the likelihood from a first step, for columns (x - shift) / scale."""
    return maximise(
        lambda beta: ask(source, replace(step, beta=tuple(beta.tolist()))),
        np.array(step.beta),
        step.design.names,
    )


def first_step(source: Source, moments: GlmMoments, alpha: float, outcome: str) -> tuple[GlmStep, Sums]:
    """The first step, and the sums that set it: no effects, columns of size 1 and, with an intercept, mean
    0."""
    sums = total(ask(source, moments))
    if sums["wrong"]:
        what = "0 or 1" if moments.family == "binomial" else "0 or more"
        raise ValueError(f"the outcome {outcome!r} must be {what}, and is not in {int(sums['wrong'])} rows")
    rows, names = max(1, int(sums["rows"])), moments.design.names
    one = {"binomial": (0, rows), "gaussian": ()}.get(moments.family, (0,))
    if int(sums["rows"]) and sums["y"] in one:
        raise NoEstimate(
            f"the outcome {outcome!r} is {sums['y'] / rows:g} in every row, so nothing can be said of what goes with it"
        )
    mean, square = sums["x"] / rows, sums["xx"] / rows
    intercept = names.index("Intercept") if "Intercept" in names else None
    shift = (
        np.zeros(len(names)) if intercept is None else np.where(np.arange(len(names)) == intercept, 0.0, mean)
    )
    variance = square - shift**2
    flat = variance <= 1e-12 * square
    if intercept is not None and (
        constant := [name for i, name in enumerate(names) if flat[i] and i != intercept]
    ):
        raise NoEstimate(
            f"{constant[0]!r} is the same in every row, so nothing can be said of it: take it out of the formula"
        )
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    beta = np.zeros(len(names))
    if intercept is not None:
        beta[intercept] = (
            families.start(moments.family, float(sums["y"]) / rows) - float(sums["offset"]) / rows
        )
    at_mean, size, begin = (tuple(x.tolist()) for x in (shift, scale, beta))
    step = GlmStep(
        moments.design,
        moments.outcome,
        moments.offset,
        moments.used,
        moments.family,
        alpha,
        at_mean,
        size,
        begin,
    )
    return step, sums


def unscaled(step: GlmStep) -> np.ndarray:
    """[P, P] matrix from coefficients of (x - shift) / scale to those of the columns themselves."""
    back = np.diag(1 / np.array(step.scale))
    if "Intercept" in step.design.names:
        back[step.design.names.index("Intercept")] -= np.array(step.shift) / np.array(step.scale)
    return back


def _fitted(
    formula: str,
    step: GlmStep,
    site_sums: Sequence[Sums],
    sums: Sums,
    beta: np.ndarray,
    rounds: int,
    known: Surveyed,
    errors: str,
    squares: Any,
) -> Glm:
    names, rows = step.design.names, int(sums["rows"])
    back = unscaled(step)
    bread = inverse(sums["information"])
    dispersion = float(sums["pearson"]) / max(1, rows - len(names)) if step.family == "gaussian" else 1.0
    with_rows = np.stack([one["gradient"] for one in site_sums if one["rows"]])
    by_site = _sandwich(bread, np.einsum("si,sj->ij", with_rows, with_rows), len(with_rows), rows)
    if errors == "model":
        covariance = inverse(sums["expected"]) * dispersion
    elif squares is None:
        covariance = by_site
    else:
        few = int(squares["clusters"]) if errors == "cluster" else None
        covariance = _sandwich(bread, squares["squares"], few, rows)
    likelihood = float(sums["log_likelihood"])
    if step.family == "gaussian":
        likelihood = (
            -rows / 2 * (np.log(2 * np.pi * float(sums["deviance"]) / rows) + 1)
            if sums["deviance"]
            else np.inf
        )
    ratio = {"binomial": "odds ratio", "gaussian": None}.get(step.family, "rate ratio")
    return Glm(
        names, back @ beta, back @ covariance @ back.T, back @ by_site @ back.T,
        deviance=float(sums["deviance"]), dispersion=dispersion, pearson=float(sums["pearson"]), log_likelihood=float(likelihood),
        rows=rows, dropped=known.dropped, sites=len(with_rows), rounds=rounds,
        alpha=step.alpha if step.family == "negative binomial" else None,
        title=f"{step.family} model: {formula}" + ("" if errors == "model" else f" ({errors} standard errors)"), ratio=ratio,
    )  # fmt: skip


def _sandwich(bread: np.ndarray, squares: np.ndarray, clusters: int | None, rows: int) -> np.ndarray:
    """bread @ squares @ bread, times the small-sample factor where there are clusters."""
    if clusters is None:
        return bread @ squares @ bread
    if clusters < 2 or rows <= len(bread):
        return np.full_like(bread, np.nan)
    return bread @ squares @ bread * (clusters / (clusters - 1)) * ((rows - 1) / (rows - len(bread)))
