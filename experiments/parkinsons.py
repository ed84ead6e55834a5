"""Parkinson's patients who record their voice at home: does a model of all of them, with an intercept for
each, foretell the next months?

    FEDJAX_CORE_DATA=... python experiments/parkinsons.py    reads parkinsons_telemonitoring/*.data there, prints tables, draws a picture

42 patients, each a site of its own with 101 to 168 recordings over half a year. Models of total UPDRS are
fitted by `fc.stats` on the first 120 days, and asked about the rest. In a second table twelve patients are
held out, of whom nothing was seen."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fedjax_core as fc

DAYS, HELD_OUT = 120, 12
FORMULA = "total_UPDRS ~ test_time + age + sex + HNR + PPE + DFA + RPDE"


def read() -> dict[str, np.ndarray]:
    """The columns of the file, with plain names."""
    file = Path(os.environ["FEDJAX_CORE_DATA"]) / "parkinsons_telemonitoring" / "parkinsons_updrs.data"
    head, *rows = file.read_text().splitlines()
    names = [name.replace("subject#", "patient") for name in head.split("\t")]
    table = np.array([[float(cell) for cell in row.split("\t")] for row in rows])
    kept = ("patient", "age", "sex", "test_time", "total_UPDRS", "HNR", "PPE", "DFA", "RPDE")
    return {name: table[:, names.index(name)] for name in kept} | {"patient": table[:, 0].astype(int)}


def foretold(coefficients: dict[str, float], columns: dict[str, np.ndarray]) -> np.ndarray:
    """[rows] x beta."""
    return sum(
        b * (1.0 if name == "Intercept" else columns[name]) for name, b in coefficients.items()
    ) + np.zeros(len(columns["age"]))


def by_patient(error: np.ndarray, patient: np.ndarray) -> tuple[float, float]:
    """(the mean over patients of their mean absolute error, its standard error)."""
    each = np.array([np.abs(error[patient == one]).mean() for one in np.unique(patient)])
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def main() -> None:
    """Prints both tables and draws the errors."""
    columns = read()
    early = columns["test_time"] < DAYS
    first, later = ({name: x[rows] for name, x in columns.items()} for rows in (early, ~early))
    clients = fc.Clients.from_table(first, by="patient")
    mixed, fixed = fc.stats.lmm(FORMULA, clients), fc.stats.glm(FORMULA, clients)
    print(mixed)
    effects = {int(who): u for who, u in mixed.site_effects.items()}
    own = {}
    for i, who in enumerate(clients.ids.tolist()):
        own[int(who)] = fc.stats.glm("total_UPDRS ~ test_time", clients.select([i])).coefficients
    y, patient = later["total_UPDRS"], later["patient"]
    last = {
        one: first["total_UPDRS"][first["patient"] == one][
            np.argmax(first["test_time"][first["patient"] == one])
        ]
        for one in effects
    }
    slopes = np.array([own[p]["test_time"] for p in patient])
    guesses = {
        "one model of all": foretold(fixed.coefficients, later),
        "a line of each patient alone": np.array([own[p]["Intercept"] for p in patient]) + slopes * later["test_time"],
        "one model, an intercept for each": foretold(mixed.coefficients, later) + np.array([effects[p] for p in patient]),
        "the last value carried forward": np.array([last[p] for p in patient]),
    }  # fmt: skip
    print(
        f"\n{early.sum()} recordings before day {DAYS}, {len(y)} later ones of {len(np.unique(patient))} patients"
    )
    print(
        "| model | mean absolute error, points of UPDRS, of later recordings (standard error over patients) |\n|---|---:|"
    )
    found = {name: by_patient(guess - y, patient) for name, guess in guesses.items()}
    for name, (mean, error) in found.items():
        print(f"| {name} | {mean:.2f} ({error:.2f}) |")

    new = np.random.default_rng(0).choice(np.unique(columns["patient"]), HELD_OUT, replace=False)
    apart = np.isin(columns["patient"], new)
    seen, unseen = ({name: x[rows] for name, x in columns.items()} for rows in (~apart, apart))
    known = fc.Clients.from_table(seen, by="patient")
    errors = {
        "the mean of all": unseen["total_UPDRS"]
        - fc.stats.lmm("total_UPDRS ~ 1", known).coefficients["Intercept"],
        "one model, an intercept for each": unseen["total_UPDRS"]
        - foretold(fc.stats.lmm(FORMULA, known).coefficients, unseen),
    }
    print(f"\n| model | mean absolute error of {HELD_OUT} patients who were not seen |\n|---|---:|")
    for name, error in errors.items():
        print("| {} | {:.2f} ({:.2f}) |".format(name, *by_patient(error, unseen["patient"])))
    _, axes = plt.subplots(figsize=(7, 3))
    axes.barh(
        list(found),
        [mean for mean, _ in found.values()],
        xerr=[1.96 * error for _, error in found.values()],
        color="tab:blue",
    )
    axes.set(xlabel="mean absolute error of later recordings, points of UPDRS")
    axes.invert_yaxis()
    plt.savefig(Path(__file__).with_name("parkinsons.png"), dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    main()
