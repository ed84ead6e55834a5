"""The figures of the Alzheimer's trial: hospitals alone and together, time to a skin event, who can foretell
it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from fedjax_core.stats.inference import Estimates

WEEKS = 26
_GREY, _BLUE, _ORANGE = "0.45", "#0072B2", "#D55E00"
_ENDS = (0.1, 200.0)  # of the axis of hazard ratios


def forest(
    alone: Mapping[str, Estimates | None],
    patients: Sequence[int],
    events: Mapping[str, int],
    together: Mapping[str, tuple[float, float, float]],
    path: Path,
) -> Path:
    """A line for each hospital alone, and for what several say together: the hazard ratio of the high dose,
    on a logarithmic axis."""
    _, axes = plt.subplots(figsize=(7.6, 6.2), layout="constrained")
    left, right = _ENDS
    for row, fit in enumerate(alone.values()):
        if fit is None:
            axes.text(1.15, row, "no estimate", color=_ORANGE, va="center", fontsize="small")
            continue
        b, low, high = np.exp([fit.coefficients["high"], *fit.intervals["high"]])
        axes.plot([max(low, left), min(high, right)], [row, row], color=_GREY, linewidth=1.2)
        axes.plot(b, row, "o", color=_GREY, markersize=4)
        if high > right:
            axes.plot(right * 0.95, row, ">", color=_GREY, markersize=4)
    for row, (b, low, high) in enumerate(together.values(), len(alone)):
        axes.plot([low, high], [row, row], color=_BLUE, linewidth=2.4)
        axes.plot(b, row, "D", color=_BLUE, markersize=6)
    axes.axhline(len(alone) - 0.5, color="0.8", linewidth=0.8)
    axes.axvline(1, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
    names = [f"{name}: {n} patients, {events[name]} events" for name, n in zip(alone, patients, strict=True)]
    axes.set(
        xscale="log",
        xlim=_ENDS,
        xlabel="hazard ratio of a skin event, high dose against placebo, 95 % interval",
    )
    axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.set_yticks(range(len(alone) + len(together)), [*names, *together], fontsize="small")
    axes.invert_yaxis()
    return _saved(path)


def survival(curves: Mapping[str, Any], path: Path) -> Path:
    """The share free of a skin event by arm, on a public grid of weeks."""
    _, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for arm, name, colour, line in (
        ("placebo", "placebo", _BLUE, "-"),
        ("low", "low dose", "#E69F00", "--"),
        ("high", "high dose", _ORANGE, "-."),
    ):
        weeks, share = np.append(0, np.asarray(curves[arm].times) / 7), np.append(1, curves[arm].survival)
        axes.step(weeks, share, where="post", color=colour, linestyle=line, label=name)
    axes.set(xlabel="week", ylabel="share without a skin event", ylim=(0, 1.02), xlim=(0, WEEKS))
    axes.legend(frameon=False)
    return _saved(path)


def held_out(found: Mapping[str, np.ndarray], path: Path) -> Path:
    """The C-index of patients held out: a dot for the model of each hospital alone, for the federated and the
    pooled one."""
    _, axes = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
    for row, values in enumerate(found.values()):
        one = len(values) == 1
        spread = np.zeros(1) if one else np.linspace(-0.18, 0.18, len(values))
        axes.plot(values, row + spread, "o", color=_BLUE if one else _GREY, markersize=8 if one else 4)
    axes.axvline(0.5, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(found)), ["each hospital alone", *list(found)[1:]])
    axes.set(xlabel="C-index of patients whom nobody trained on (0.5: a coin)", ylim=(len(found) - 0.5, -0.5))
    return _saved(path)


def _saved(path: Path) -> Path:
    plt.gca().spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)
    plt.close()
    return path
