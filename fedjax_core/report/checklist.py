"""The items of TRIPOD+AI (Collins et al., BMJ 2024; 385: e078378), each filled from the run, or marked
`FOR_AUTHOR`.

The items are paraphrased in short. No item claims what the folder does not hold.

>>> from pathlib import Path
>>> [said for _, _, said in items(Facts(Path(".")))].count(FOR_AUTHOR)
26
"""

import math
from collections.abc import Mapping
from typing import Any

from fedjax_core.report.facts import Facts

FOR_AUTHOR = "for the author"


def items(facts: Facts) -> list[tuple[str, str, str]]:
    """(number, item, its text from the run or `FOR_AUTHOR`) of all 27."""
    notes, sites = facts.notes, facts.sites
    flow = notes.get("flow", {})
    left_out = sum(sum(one.get("left out", {}).values()) for one in flow.values())
    rows = sum(one.get("rows in", 0) for one in flow.values())
    held = sum(one.get("held out", 0) for one in flow.values())
    performance = notes.get("performance", {})
    known: dict[str, str] = {
        "4": notes.get("question", ""),
        "5": f"tables of {len(sites)} sites: {', '.join(sites)}" if sites else "",
        "6": notes.get("population", ""),
        "7": f"{left_out} of {rows} rows left out, by reasons given under 'Sites and people'" if rows else "",
        "8": notes.get("outcome", ""),
        "10": f"{sum(facts.examples.values())} examples at {len(facts.examples)} sites"
        if facts.examples
        else "",
        "12": f"{_rounds(facts)}; settings under 'Configuration'" if facts.records else "",
        "14": "results by subgroup are given" if notes.get("subgroups") else "",
        "16": f"{held} examples were held out and not trained on" if held else "",
        "18": "configuration, versions and digests are given; data do not leave sites",
        "20": "numbers by site" if flow else "",
        "21": f"convergence over {facts.rounds} rounds" if facts.records else "",
        "23": f"{', '.join(sorted(_metrics(performance)))}, by site" if performance else "",
        "26": notes.get("limitations", ""),
        "27": notes.get("intended_use", ""),
    }
    return [(number, item, known.get(number) or FOR_AUTHOR) for number, item in _ITEMS]


def card(facts: Facts) -> dict[str, str]:
    """A model card: {heading: text from the run or `FOR_AUTHOR`}."""
    notes, spent = facts.notes, facts.spent
    epsilon = spent.get("epsilon")
    privacy = (
        f"epsilon {epsilon:.4g} after {spent.get('rounds')} rounds"
        if isinstance(epsilon, int | float) and math.isfinite(epsilon)
        else ""
    )
    sections = {
        "intended use": notes.get("intended_use", ""),
        "outcome": notes.get("outcome", ""),
        "trained at": ", ".join(facts.sites),
        "training": _rounds(facts) if facts.records else "",
        "performance": ", ".join(
            f"{name} {_formatted(value)}"
            for name, value in notes.get("performance", {}).get("all", {}).items()
        ),
        "privacy": privacy or "no account of an epsilon was kept",
        "limitations": notes.get("limitations", ""),
        "authors": notes.get("authors", ""),
    }
    return {name: text or FOR_AUTHOR for name, text in sections.items()}


def _rounds(facts: Facts) -> str:
    return f"{facts.rounds} federated rounds" + (f" of {facts.algorithm}" if facts.algorithm else "")


def _formatted(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{value[0]:.3g} ({value[1]:.3g} to {value[2]:.3g})"
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def _metrics(performance: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name for of in performance.values() for name in of}


_ITEMS = [
    ("1", "Title: a prediction model, its population and outcome"),
    ("2", "Abstract"),
    ("3", "Background: context, existing models, health inequalities"),
    ("4", "Objectives"),
    ("5", "Data: sources, dates"),
    ("6", "Participants: setting, eligibility, treatments"),
    ("7", "Data preparation"),
    ("8", "Outcome: definition, assessment"),
    ("9", "Predictors: choice, definition, assessment"),
    ("10", "Sample size"),
    ("11", "Missing data"),
    ("12", "Analytical methods"),
    ("13", "Class imbalance"),
    ("14", "Fairness"),
    ("15", "Model output"),
    ("16", "Training versus evaluation"),
    ("17", "Ethical approval"),
    ("18", "Open science: protocol, registration, sharing of data and code, funding"),
    ("19", "Involvement of patients and the public"),
    ("20", "Results: participants"),
    ("21", "Results: model development"),
    ("22", "Results: model specification"),
    ("23", "Results: model performance"),
    ("24", "Results: model updating"),
    ("25", "Interpretation"),
    ("26", "Limitations"),
    ("27", "Usability in care"),
]
