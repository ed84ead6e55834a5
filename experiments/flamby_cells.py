"""Counts the cells of FLamby's published tables, one for each method, test set and seed, that a study meets
to the last digit."""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def published(study: str, seeds: Sequence[int]) -> dict[str, np.ndarray] | None:
    """{method: [seeds, tests]} of "heart" or "tcga": the sites, then the pooled test; None where
    $FEDJAX_CORE_DATA lacks them."""
    folder = Path(os.environ.get("FEDJAX_CORE_DATA", "")) / "flamby_reference_results"
    files = [folder / f"{study}_{seed}.csv" for seed in seeds]
    if missing := [file for file in files if not file.is_file()]:
        print(
            f"no cell-by-cell comparison: $FEDJAX_CORE_DATA/flamby_reference_results has no {missing[0].name}"
        )
        return None
    found: dict[str, list[dict[str, float]]] = defaultdict(lambda: [{} for _ in seeds])
    for s, file in enumerate(files):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                found[row["Method"].removesuffix("100")][s][row["Test"]] = float(row["Metric"])
    return {
        name: np.array(
            [
                [by_test[test] for test in sorted(by_test, key=lambda t: (t == "Pooled Test", t))]
                for by_test in runs
            ]
        )
        for name, runs in found.items()
    }


def compare(
    found: Mapping[str, np.ndarray], study: str, seeds: Sequence[int], within: float = 1e-6
) -> tuple[int, int] | None:
    """Prints the cells that differ, and how many do not; `found`: {method: [seeds, tests]}. Returns (met,
    all)."""
    theirs = published(study, seeds)
    if theirs is None:
        return None
    met, cells = 0, 0
    for name, values in found.items():
        for s, test in np.argwhere(np.abs(values - theirs[name]) >= within):
            print(
                f"differs: seed {seeds[s]}, {name}, test {test}: {values[s, test]:.6f}, published {theirs[name][s, test]:.6f}"
            )
        same = int((np.abs(values - theirs[name]) < within).sum())
        met, cells = met + same, cells + values.size
        print(f"{name}: {same} of {values.size}")
    print(f"published cells that came out exactly: {met} of {cells}")
    return met, cells


def draw(found: Mapping[str, np.ndarray], study: str, seeds: Sequence[int], label: str, path: Path) -> None:
    """Draws the last test of each method, a dot for each seed, and the published ones as rings."""
    theirs = published(study, seeds) or {}
    _, axes = plt.subplots(figsize=(7.5, 4.5))
    for i, (name, values) in enumerate(found.items()):
        axes.plot(
            values[:, -1], np.full(len(seeds), i), "o", color="tab:blue", label="here" if not i else None
        )
        if name in theirs:
            ring = {
                "color": "black",
                "fillstyle": "none",
                "markersize": 10,
                "label": "published" if not i else None,
            }
            axes.plot(theirs[name][:, -1], np.full(len(seeds), i), "o", **ring)
    axes.set(yticks=range(len(found)), yticklabels=list(found), xlabel=label)
    axes.invert_yaxis()
    axes.axvline(0.5, color="grey", linewidth=0.5)
    axes.legend()
    plt.savefig(path, dpi=110, bbox_inches="tight")
