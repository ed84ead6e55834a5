"""Who dies in intensive care, over 174 hospitals with at most 16 patients each: a logistic model, at
hospitals that it never saw.

    FEDJAX_CORE_DATA=... python experiments/eicu.py       reads eicu_demo/patient.csv there, prints a table, draws eicu.png

The eICU demo (ODbL 1.0): 1,658 first stays with an APACHE score; died in hospital ~ age, sex, height, weight
and the acute physiology score. Every model is fitted by `fc.stats` on sums of hospitals, and judged by people
whom it never saw:

    every fourth hospital    as others split these data; all their people are held out
    ten folds of hospitals   each hospital is left out with a tenth of the others, then all people are judged together
    regions                  each of four is left out; their mean, and what to expect in a region that is not among them
    half of the people       whether an intercept of each hospital's own helps its other half, and local steps of a common model
"""

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import fedjax_core as fc
from fedjax_core.clinical import intervals, ranks, validation
from fedjax_core.clinical.performance import Estimate
from fedjax_core.personalise import personalise
from fedjax_core.stats.newton import NoEstimate

INPUTS = ("age", "aps", "height", "weight", "male")
FORMULA = f"died ~ {' + '.join(INPUTS)}"
FOLDS, EVERY, REGIONS = 10, 4, ("Midwest", "Northeast", "South", "West")
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """The study of intensive care."""

    seed: int = 0
    """Deals hospitals to folds, and people to halves."""
    figure: Path | None = None
    """Where the picture goes; beside this file where none is named."""


def read() -> Columns:
    """Of each first stay with a score: hospital, region, the outcome, INPUTS and APACHE's own risk; NaN where
    a value is missing."""
    if "FEDJAX_CORE_DATA" not in os.environ:
        raise SystemExit("set FEDJAX_CORE_DATA to the folder that holds eicu_demo/patient.csv")
    with (Path(os.environ["FEDJAX_CORE_DATA"]) / "eicu_demo" / "patient.csv").open(newline="") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if row["unitvisitnumber"] == "1" and float(row["apachescore"] or -1) > 0
        ]

    def number(name: str, low: float, high: float) -> np.ndarray:
        x = np.array([float(row[name].replace("> ", "") or "nan") for row in rows])
        return np.where((x >= low) & (x <= high), x, np.nan)  # a height of 600 cm is none

    return {
        "hospital": np.array([row["hospitalid"] for row in rows]).astype(int),
        "region": np.array([row["region"] or "not told" for row in rows]),
        "died": np.array([row["actualhospitalmortality"] == "EXPIRED" for row in rows]) * 1,
        "age": number("age", 0, 120),
        "aps": number("acutephysiologyscore", 0, 300),
        "height": number("admissionheight", 100, 230),
        "weight": number("admissionweight", 25, 300),
        "male": np.array([row["gender"] == "Male" for row in rows]) * 1,
        "apache": number("predictedhospitalmortality", 0, 1),
    }


def auroc(died: np.ndarray, risks: np.ndarray) -> Estimate:
    """The AUROC with DeLong's 95 % interval, of counts of people by risk, which add over hospitals."""
    return intervals.delong(ranks.counts(died, risks, ranks.levels([risks])))


def filled(columns: Columns, train: np.ndarray, test: np.ndarray) -> tuple[fc.Clients, Columns]:
    """(the training people by hospital, the test people), missing values by the mean of the training people,
    from sums."""
    parts = [
        {name: x[rows] for name, x in columns.items() if name in (*INPUTS, "hospital", "died")}
        for rows in (train, test)
    ]
    raw = fc.Clients.from_table(parts[0], by="hospital")
    steps = fc.preprocess.fit([fc.preprocess.Impute(name) for name in INPUTS if name != "male"], raw)
    return steps.apply(raw), steps(parts[1])


def risk(coefficients: dict[str, float], people: Columns, own: np.ndarray | float = 0.0) -> np.ndarray:
    """[n] the risk of death of these people; `own` is added to the intercept."""
    eta = sum(coefficients[name] * np.asarray(people[name], float) for name in INPUTS)
    return 1 / (1 + np.exp(-(eta + coefficients["Intercept"] + own)))


def unseen(columns: Columns, test: np.ndarray) -> np.ndarray:
    """[test people] their risk, by the model of all others."""
    clients, people = filled(columns, ~test, test)
    return risk(fc.stats.glm(FORMULA, clients, family="binomial").coefficients, people)


def new_hospitals(columns: Columns, seed: int) -> tuple[dict[str, Estimate], validation.LeftOut]:
    """(AUROC at hospitals that no model saw, by ways to hold them out; what each region says and a new one
    would)."""
    names, of = np.unique(columns["hospital"], return_inverse=True)
    died, fourth = columns["died"], of % EVERY == 0
    known = fourth & np.isfinite(columns["apache"])
    folds = np.random.default_rng(seed).permutation(len(names))[of] % FOLDS
    risks = np.empty(len(died))
    for fold in range(FOLDS):
        risks[folds == fold] = unseen(columns, folds == fold)
    found = {
        "every fourth hospital": auroc(died[fourth], unseen(columns, fourth)),
        "the same, by APACHE IVa": auroc(died[known], columns["apache"][known]),
        "ten folds of hospitals": auroc(died, risks),
    }

    def judge(_: None, region: str) -> validation.Judged:
        here = columns["region"] == region
        counted = ranks.counts(died[here], r := unseen(columns, here), ranks.levels([r]))
        return validation.Judged(ranks.auroc(counted, exact=True).value, intervals.variance(counted) ** 0.5)

    # The model of the others also has people whose region is not told, so `judge` fits it.
    return found, validation.leave_one_out(REGIONS, fit=lambda others: None, judge=judge, scale="logit")


def personal(columns: Columns, seed: int) -> tuple[dict[str, Estimate], float, float]:
    """(AUROC of each hospital's other half by models with more and less of its own, sd of hospitals'
    intercepts, p of their being 0)."""
    half = np.random.default_rng(seed + 1).uniform(size=len(columns["died"])) < 0.5
    clients, people = filled(columns, half, ~half)
    common = fc.stats.glm(FORMULA, clients, family="binomial")
    mixed = fc.stats.glmm(FORMULA, clients, family="binomial")
    own = np.array([mixed.site_effects.get(int(h), 0.0) for h in columns["hospital"][~half]])
    found = {
        "one model": risk(common.coefficients, people),
        "an intercept of each hospital": risk(mixed.coefficients, people, own),
        "local steps at each hospital": local_steps(clients, people, columns["hospital"][~half]),
    }
    died = people["died"]
    return (
        {name: auroc(died, risks) for name, risks in found.items()},
        mixed.random_intercept_sd,
        mixed.sites_p_value,
    )


def local_steps(clients: fc.Clients, people: Columns, hospital: np.ndarray) -> np.ndarray:
    """[people] their risk by FedAvg's model after ten steps at their own hospital; by FedAvg's where it has
    nobody to learn from."""
    steps = fc.preprocess.fit([fc.preprocess.Standardise(name) for name in INPUTS if name != "male"], clients)

    def inputs(table: Columns) -> np.ndarray:
        table = steps(table)
        return np.stack([np.asarray(table[name], np.float32) for name in INPUTS], axis=1)

    train = clients.with_columns(
        {"x": inputs(clients.columns), "y": np.asarray(clients.columns["died"], np.int32)}
    )
    task, sgd = fc.models.logistic(features=len(INPUTS), classes=1), optax.sgd(0.5)
    sim = fc.Simulator(fc.compose(fc.algorithms.fedavg(task, local=sgd)), train, batch_size=16, steps=1)
    state, _ = sim.run_many(sim.init(jax.random.key(0)), [np.arange(len(train))] * 200)
    own = personalise(task, state.params, train, optax.sgd(0.1), batch_size=16, steps=10)
    at = {int(name): i for i, name in enumerate(clients.ids.tolist())}
    w, b = (
        np.concatenate([np.asarray(own[name]), np.asarray(state.params[name])[None]]) for name in ("w", "b")
    )
    which = np.array([at.get(int(h), len(at)) for h in hospital])
    return 1 / (1 + np.exp(-(np.einsum("ni,ni->n", inputs(people), w[which, :, 0]) + b[which, 0])))


def draw(rows: dict[str, Estimate], path: Path) -> None:
    """Each AUROC with its interval."""
    _, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for row, found in enumerate(rows.values()):
        axes.plot([found.low, found.high], [row, row], color="#0072B2", linewidth=1.8)
        axes.plot(found.value, row, "o", color="#0072B2")
    axes.axvline(0.78, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="AUROC, 95 % interval (dashed: 0.78)")
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=90)
    plt.close()


def main(settings: Settings) -> int:
    """Prints the table and draws it; 1 where hospitals that were never seen have an AUROC below 0.78."""
    columns = read()
    everyone = np.ones(len(columns["died"]), bool)
    clients, _ = filled(columns, everyone, everyone)
    alone = 0
    for i in range(len(clients)):
        try:
            fc.stats.glm(FORMULA, clients.select([i]), family="binomial")
            alone += 1
        except (NoEstimate, ValueError):
            pass
    sizes = f"{min(clients.sizes)} to {max(clients.sizes)}"
    print(f"{clients.examples} people, {columns['died'].sum()} deaths, {len(clients)} hospitals of {sizes}")
    print(f"hospitals that can fit the model alone: {alone}\n")
    print(fc.stats.glm(FORMULA, clients, family="binomial").table(), "\n")
    found, regions = new_hospitals(columns, settings.seed)
    own, sd, p = personal(columns, settings.seed)
    rows = found | {f"{name} left out": each for name, each in regions.left_out.items()}
    rows |= {"mean of regions": Estimate(regions.estimate, *regions.interval)}
    rows |= {"a new region (prediction)": Estimate(regions.estimate, *regions.prediction_interval)}
    rows |= {f"half of the people: {name}": each for name, each in own.items()}
    print("| judged at | AUROC (95 %) |\n|---|---:|")
    for name, each in rows.items():
        print(f"| {name} | {each.value:.3f} ({each.low:.3f} to {each.high:.3f}) |")
    print(f"\nintercepts of hospitals differ by {sd:.2f} (sd of log odds), p of no difference {p:.3f}")
    draw(rows, settings.figure or Path(__file__).with_name("eicu.png"))
    return (
        0
        if min(found[name].value for name in ("every fourth hospital", "ten folds of hospitals")) >= 0.78
        else 1
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
