"""Cox's proportional hazards over sites: the pooled fit, by Newton's method on sums of risk sets.

    l(beta) = sum over times t of  sum_events x'beta - sum_{k < d} log(R0 - f D0),    f = k / d (Efron) or 0 (Breslow)
    R_j = sum over rows at risk at t of e^{x'beta} x^j,  D_j of the events at t alone;  j = 0, 1, 2

    strata = "site"    each site computes its own l, gradient and information: P + P^2 + 1 numbers leave it,
                       and no time of any patient
    otherwise          sites send R_j and D_j at each event time, and the centre adds them before it takes the
                       logarithm; with a public `grid`, times are rounded up to the grid

Proportional hazards are tested by Schoenfeld's residuals, x - R_1 / R_0 at each event, against a function of
time: the score test of Grambsch and Therneau, Biometrika 1994. Cox, JRSS B 1972; Efron, JASA 1977; Breslow,
Biometrics 1974.

>>> from fedjax_core.data.clients import Clients
>>> columns = {"site": list("aaabbb"), "time": [5, 3, 9, 4, 8, 2], "event": [1, 1, 0, 1, 1, 1], "age": [60, 71, 50, 66, 72, 58]}
>>> fit = cox("time, event ~ age", Clients.from_table(columns, by="site"), strata="site")
>>> fit.events, round(fit.coefficients["age"], 4)
(5, 0.0387)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from scipy.stats import chi2

from fedjax_core.stats.base import Limits, Source, Sums, ask, count, total
from fedjax_core.stats.formula import Design, read
from fedjax_core.stats.inference import Estimates
from fedjax_core.stats.newton import NoEstimate, inverse, maximise
from fedjax_core.stats.survey import Missing, survey
from fedjax_core.stats.survival import Times, check_grid, event_times, keys, outcome
from fedjax_core.stats.table import SITE, Table

Ties = Literal["efron", "breslow"]
AT_ONE_TIME = "people have an event at one time: give a coarser grid=, or stratify by site"


@dataclass(frozen=True)
class CoxMoments:
    """The site half of scaling: sums of the columns and of their squares, and counts of rows and events."""

    design: Design
    times: Times
    used: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        x, _, event, _, _ = _rows(self, (), table, limits)
        return {"rows": count(len(x)), "events": count(event.sum()), "x": x.sum(0), "xx": (x**2).sum(0)}


@dataclass(frozen=True)
class CoxStep:
    """The site half of a Newton step at beta, for columns (x - shift) / scale: sums over risk sets, or the
    likelihood of a site that is a stratum."""

    design: Design
    times: Times
    strata: tuple[str, ...]
    within: bool
    """Whether each site is a stratum of its own; `at` is not used then."""
    at: tuple[tuple[str, float], ...]
    """(stratum, time) of the events at all sites."""
    grid: tuple[float, ...]
    ties: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    beta: tuple[float, ...]
    used: tuple[str, ...]
    transform: str = ""
    """The function of time in the test of proportional hazards, for sites that are strata; "" for no test."""

    def __post_init__(self) -> None:
        if self.transform not in ("", "identity", "log"):
            raise ValueError(f"there is no transformation of time called {self.transform!r} at a site")
        if self.ties not in ("efron", "breslow"):
            raise ValueError(f"there is no treatment of ties called {self.ties!r}")
        if len({len(self.shift), len(self.scale), len(self.beta), len(self.design.names)}) > 1:
            raise ValueError("beta, shift and scale need a number for each column of the design")
        object.__setattr__(self, "at", tuple((str(stratum), float(time)) for stratum, time in self.at))

    @property
    def columns(self) -> tuple[str, ...]:
        return self.used

    def sums(self, table: Table, limits: Limits) -> Sums:
        x, time, event, entry, table = _rows(self, self.grid, table, limits)
        x = (x - np.array(self.shift)) / np.array(self.scale)
        key = keys(table, self.strata)
        stratum_times = self.at
        if self.within:
            stratum_times = tuple(
                sorted(set(zip(key[event == 1].tolist(), time[event == 1].tolist(), strict=True)))
            )
        eta = x @ np.array(self.beta)
        with np.errstate(over="ignore"):
            limits.weights(np.exp(eta - eta.max(initial=-np.inf)), table.person_ids)
        sums = _risk_sums(x, eta, time, event, entry, key, stratum_times)
        if self.within:
            of_time = (
                transformed(self.transform, np.array([time_ for _, time_ in stratum_times]))
                if self.transform
                else None
            )
            return partial_likelihood(sums, self.ties, of_time)
        for stratum, moment in stratum_times:
            risk = (key == stratum) & (time >= moment) & (entry < moment)
            limits.group(table.person_ids[risk & (event == 1) & (time == moment)], AT_ONE_TIME, self.used)
            limits.group(
                table.person_ids[risk], "people are at risk at a time: end the grid before", self.used
            )
        return sums


def _rows(
    statistic: CoxMoments | CoxStep, grid: Sequence[float], table: Table, limits: Limits
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Table]:
    """(X, time, event, entry, table) of the complete rows, after the site's limits are checked."""
    table = table.complete(statistic.used)
    x = statistic.design.matrix(table)
    time, event, entry = statistic.times.of(table, grid)
    limits.group(table.person_ids, "people", statistic.used)
    limits.model(table, statistic.design, x, event, statistic.used)
    return x, time, event, entry, table


def _risk_sums(
    x: np.ndarray,
    eta: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    entry: np.ndarray,
    key: np.ndarray,
    stratum_times: Sequence[tuple[str, float]],
) -> dict[str, np.ndarray]:
    """Sums at each (stratum, time): R0 [T], R1 [T, P], R2 [T, P, P] of rows at risk; D0, D1, D2, count, and
    sums of x and eta of events."""
    p = x.shape[1]
    sums = {
        name: np.zeros((len(stratum_times), *shape))
        for name, shape in (("0", ()), ("1", (p,)), ("2", (p, p)))
        for name in (f"r{name}", f"d{name}")
    }
    sums |= {
        "events": np.zeros(len(stratum_times)),
        "x": np.zeros((len(stratum_times), p)),
        "eta": np.zeros(len(stratum_times)),
    }
    strata = np.array([stratum for stratum, _ in stratum_times], dtype=str)
    moments = np.array([time_ for _, time_ in stratum_times])
    with np.errstate(over="ignore"):
        w = np.exp(eta)
    for stratum in dict.fromkeys(strata.tolist()):
        rows, places = np.flatnonzero(key == stratum), np.flatnonzero(strata == stratum)
        weight, grid, dead = w[rows], moments[places], event[rows] == 1
        terms = (
            weight,
            weight[:, None] * x[rows],
            weight[:, None, None] * x[rows, :, None] * x[rows, None, :],
        )
        for j, each in enumerate(terms):
            sums[f"r{j}"][places] = _sums_from(each, time[rows], grid) - _sums_from(each, entry[rows], grid)
            sums[f"d{j}"][places] = _sums_at(each[dead], time[rows][dead], grid)
        for name, values in (("events", np.ones(len(rows))), ("x", x[rows]), ("eta", eta[rows])):
            sums[name][places] = _sums_at(values[dead], time[rows][dead], grid)
    return sums


def _sums_from(each: np.ndarray, time: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """[T, ...] sums over the rows at each grid time or later."""
    order = np.argsort(-time, kind="stable")
    sums = np.concatenate([np.zeros((1, *each.shape[1:])), np.cumsum(each[order], axis=0)])
    result: np.ndarray = sums[np.searchsorted(-time[order], -grid, side="right")]
    return result


def _sums_at(each: np.ndarray, time: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """[T, ...] sums over the rows at each grid time."""
    sums = np.zeros((len(grid), *each.shape[1:]))
    places = np.searchsorted(grid, time)
    here = (
        (places < len(grid)) & (grid[np.minimum(places, len(grid) - 1)] == time)
        if len(grid)
        else np.zeros(len(time), bool)
    )
    np.add.at(sums, places[here], each[here])
    return sums


def partial_likelihood(sums: Sums, ties: str, of_time: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The log partial likelihood, its gradient [P] and information [P, P], from sums over risk sets at all
    event times.

    `of_time` [T], a function of these times, adds what its test needs: its gradient, and the information with
    it once and twice."""
    d = sums["events"].astype(np.int64)
    t = np.repeat(np.arange(len(d)), d)
    f = (
        (np.arange(len(t)) - np.repeat(np.cumsum(d) - d, d)) / np.maximum(d[t], 1)
        if ties == "efron"
        else np.zeros(len(t))
    )
    with np.errstate(all="ignore"):  # a step that is too long is halved
        s0 = sums["r0"][t] - f * sums["d0"][t]
        mean = (sums["r1"][t] - f[:, None] * sums["d1"][t]) / s0[:, None]
        square = (sums["r2"][t] - f[:, None, None] * sums["d2"][t]) / s0[:, None, None]
        result = {
            "log_likelihood": np.asarray(sums["eta"].sum() - np.log(s0).sum()),
            "gradient": sums["x"].sum(0) - mean.sum(0),
            "information": square.sum(0) - mean.T @ mean,
        }
        if of_time is not None:
            g = of_time[t]
            result["time_gradient"] = of_time @ sums["x"] - g @ mean
            for word, w in (("time_information", g), ("time_time_information", g**2)):
                result[word] = np.einsum("e,eij->ij", w, square) - (mean * w[:, None]).T @ mean
        return result


def transformed(transform: str, times: np.ndarray, events: np.ndarray | None = None) -> np.ndarray:
    """[T] a function of time: the time itself, its logarithm, or the mean rank of its events among all."""
    if transform == "rank" and events is not None:
        order = np.argsort(times, kind="stable")
        same, places = np.unique(times[order], return_inverse=True)
        each = np.bincount(places, weights=events[order], minlength=len(same))
        ranks = np.empty(len(times))
        ranks[order] = (np.cumsum(each) - (each - 1) / 2)[places]
        return ranks
    if transform == "log" and (times <= 0).any():
        raise ValueError(
            "an event is at time 0, which has no logarithm: test proportional hazards by schoenfeld='identity'"
        )
    return np.log(times) if transform == "log" else times


@dataclass(frozen=True)
class Schoenfeld:
    """The test of proportional hazards: whether a coefficient changes with a function of time; a small p says
    that one does."""

    transform: str
    chi2: dict[str, float]
    """{coefficient: chi-square of 1 degree of freedom}."""
    p_values: dict[str, float]
    global_chi2: float
    """Of all coefficients together."""
    global_p: float


@dataclass(frozen=True, repr=False)
class Cox(Estimates):
    """A fitted proportional hazards model."""

    log_likelihood: float
    """The partial one."""
    null_log_likelihood: float
    """With all coefficients 0."""
    events: int
    rows: int
    dropped: int
    ties: str
    rounds: int
    baseline: dict[str, tuple[np.ndarray, np.ndarray]] | None
    """{stratum: (times, cumulative hazard there of a row whose columns are all 0)}; None where sites are
    strata, which keep their times."""
    schoenfeld: Schoenfeld | None
    """The test of proportional hazards, if requested."""

    @property
    def likelihood_ratio(self) -> float:
        """Chi-square of all coefficients together."""
        return 2 * (self.log_likelihood - self.null_log_likelihood)

    def facts(self) -> list[str]:
        """Further facts about the fit, a line each."""
        left = f", {self.dropped} with missing values left out" if self.dropped else ""
        return [
            f"{self.events} events in {self.rows} rows{left}; ties by {self.ties.capitalize()}; {self.rounds} rounds",
            f"partial log-likelihood {self.log_likelihood:.4f}, likelihood ratio {self.likelihood_ratio:.2f} on {len(self.names)}",
        ]


def cox(
    formula: str,
    source: Source,
    *,
    ties: Ties = "efron",
    strata: str | Sequence[str] = (),
    grid: Sequence[float] | None = None,
    schoenfeld: Literal["identity", "log", "rank"] | None = None,
    missing: Missing = "refuse",
) -> Cox:
    """The fit of "time, event ~ covariates" (or "entry, time, event ~ ...") over the rows of all clients or
    sites, as if pooled.

    `strata`: one or more columns; each of their levels has its own baseline. "site" makes each site a
    stratum, and then no time leaves it. `grid`: public times, to which others are rounded up. `schoenfeld`:
    tests proportional hazards against coefficients that change with time, its logarithm or, where sites send
    times, the rank of its event; this takes one more message. Raises ValueError where values are missing (see
    `missing`) or are not times and events, and `NoEstimate` where the likelihood grows without end."""
    if ties not in ("efron", "breslow"):
        raise ValueError(f'ties={ties!r} is not known: "efron" or "breslow"')
    if schoenfeld not in (None, "identity", "log", "rank"):
        raise ValueError(f'schoenfeld={schoenfeld!r} is not known: "identity", "log" or "rank"')
    parsed = read(formula)
    times, by = outcome(parsed), (strata,) if isinstance(strata, str) else tuple(strata)
    known = survey(source, (*parsed.columns, *by), (*parsed.categories, *by), missing)
    times = times.known(known)
    whole = parsed.design(known.kinds, known.levels)
    pairs = [
        (name, one) for name, one in zip(whole.names, whole.expressions, strict=True) if name != "Intercept"
    ]
    if not pairs:
        raise ValueError(f"{formula!r} has no covariate: for the curve alone use fc.stats.kaplan_meier")
    design, used = (
        Design(tuple(name for name, _ in pairs), tuple(one for _, one in pairs)),
        tuple(known.kinds),
    )
    sums = total(ask(source, CoxMoments(design, times, used)))
    if not sums["events"]:
        raise NoEstimate("there is no event at any site, so nothing can be said of hazards")
    within = any(name in SITE for name in by)
    if within and schoenfeld == "rank":
        raise ValueError(
            'schoenfeld="rank" needs the times of all events, which stay at the sites where these are strata: take "log"'
        )
    rest = tuple(name for name in by if name not in SITE)
    at_grid = check_grid(grid) if grid is not None else ()
    stratum_times: list[tuple[str, float]] = []
    if not within:
        labels = [" / ".join(one) for one in product(*(known.levels[name] for name in rest))]
        stratum_times = (
            [(key, one) for key in labels for one in at_grid]
            if at_grid
            else event_times(source, times, rest, used)
        )
    mean, square = sums["x"] / int(sums["rows"]), sums["xx"] / int(sums["rows"])
    spread = square - mean**2
    if flat := [name for name, s, q in zip(design.names, spread, square, strict=True) if s <= 1e-12 * q]:
        raise NoEstimate(
            f"{flat[0]!r} is the same in every row, so nothing can be said of it: take it out of the formula"
        )
    scale = np.sqrt(spread)
    zero = np.zeros(len(pairs))
    at_mean, size, begin = (tuple(x.tolist()) for x in (mean, scale, zero))
    step = CoxStep(
        design, times, rest, within, tuple(stratum_times), at_grid, ties, at_mean, size, begin, used
    )

    def ask_step(beta: np.ndarray) -> list[Sums]:
        site_sums = ask(source, replace(step, beta=tuple(beta.tolist())))
        return site_sums if within else [partial_likelihood(total(site_sums), ties)]

    null = total(ask_step(zero))
    fit = maximise(ask_step, zero, design.names, "fate")
    covariance = inverse(fit.sums["information"]) / np.outer(scale, scale)
    beta = fit.beta / scale
    baseline = tested = None
    if not within or schoenfeld:
        last = total(
            ask(
                source,
                replace(step, beta=tuple(fit.beta.tolist()), transform=schoenfeld or "" if within else ""),
            )
        )
    if schoenfeld:
        at_times = transformed(
            schoenfeld, np.array([time for _, time in stratum_times]), None if within else last["events"]
        )
        tested = _tested(
            last if within else partial_likelihood(last, ties, at_times), design.names, schoenfeld
        )
    if not within:
        risk = last
        baseline = _baseline(risk, stratum_times, ties, float(mean @ beta))
    return Cox(
        design.names, beta, covariance, float(fit.sums["log_likelihood"]), float(null["log_likelihood"]), int(sums["events"]),
        int(sums["rows"]), known.dropped, ties, fit.rounds, baseline, tested,
        title=f"proportional hazards: {formula}" + (f", strata {', '.join(by)}" if by else ""), ratio="hazard ratio",
    )  # fmt: skip


def _tested(sums: Sums, names: Sequence[str], transform: str) -> Schoenfeld:
    """The score test of coefficients beta + theta g(t) at theta = 0, as in R's cox.zph since survival 3.0."""
    v, once, twice = (sums[word] for word in ("information", "time_information", "time_time_information"))
    g = sums["time_gradient"]
    left = twice - once @ inverse(v) @ once  # the information of g, less what beta takes up
    alone = np.array([twice[j, j] - once[j] @ inverse(v) @ once[:, j] for j in range(len(g))])
    each, whole = g**2 / alone, float(g @ inverse(left) @ g)
    p = dict(zip(names, map(float, chi2.sf(each, 1)), strict=True))
    return Schoenfeld(
        transform, dict(zip(names, each.tolist(), strict=True)), p, whole, float(chi2.sf(whole, len(g)))
    )


def _baseline(
    sums: Sums, stratum_times: Sequence[tuple[str, float]], ties: str, at_mean: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Cumulative hazards by strata for a row of zeros; `sums` are of columns with mean 0."""
    by_stratum: dict[str, tuple[list[float], list[float]]] = {}
    for i, (stratum, time) in enumerate(stratum_times):
        d = int(sums["events"][i])
        f = np.arange(d) / max(d, 1) if ties == "efron" else np.zeros(d)
        rise = float(np.sum(1 / (sums["r0"][i] - f * sums["d0"][i]))) * float(np.exp(-at_mean)) if d else 0.0
        times, hazard = by_stratum.setdefault(stratum, ([], []))
        times.append(time)
        hazard.append((hazard[-1] if hazard else 0.0) + rise)
    return {stratum: (np.array(times), np.array(hazard)) for stratum, (times, hazard) in by_stratum.items()}
