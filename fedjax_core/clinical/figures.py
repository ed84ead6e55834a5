"""Figures of the performance of methods, as PNG files: convergence, hospitals side by side, calibration.

Colours are Okabe and Ito's, which people with any kind of colour vision can tell apart; line styles and
markers differ as well, so that the figures survive a grey printer. A method has the same look in all figures
of a process. A score interval, which is of a wider kind than the bootstrap's, has a hollow marker and a
dashed bar.

>>> import tempfile
>>> convergence({"FedAvg": [0.7, 0.5, 0.4]}, f"{tempfile.mkdtemp()}/loss.png", ylabel="training loss").name
'loss.png'
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_core.clinical.performance import (
    METRICS,
    Assessment,
    Predictions,
    calibration_curve,
    estimate,
    names_of,
    wilson,
)

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 160
_MOST_INCHES = 60.0
_MOST_HOSPITALS = 100  # whose names can be read in a figure of that width


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    line: str
    marker: str


_looks: dict[str, Look] = {}


def look(method: str) -> Look:
    """A method's look, the same in every figure of this process."""
    if method not in _looks:
        i = len(_looks)
        j = i + i // len(_COLOURS)  # methods of one colour differ in their lines
        _looks[method] = Look(
            _COLOURS[i % len(_COLOURS)], _STYLES[j % len(_STYLES)], _MARKERS[j % len(_MARKERS)]
        )
    return _looks[method]


Curve = Sequence[float] | tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""The values after rounds 1, 2, ...; or (rounds, values), as `History.curve` has them."""


def convergence(
    curves: Mapping[str, Curve], path: str | Path, *, ylabel: str, level: Mapping[str, float] | None = None
) -> Path:
    """Draws a line for each method over the rounds, to `path`; `level` adds horizontal lines for methods
    without rounds.

    A value that is not finite is a gap in its line.
    """
    figure, axes = _figure(6.4, 4.0)
    # Later lines lie above and are thinner, so that equal ones are all seen.
    widths = np.linspace(3.2, 1.4, len(curves))
    for (name, curve), width in zip(curves.items(), widths, strict=True):
        given = isinstance(curve, tuple) and len(curve) == 2 and np.ndim(curve[0]) == 1
        rounds, values = np.asarray(curve) if given else (np.arange(1, len(curve) + 1), np.asarray(curve))
        shown = np.where(np.isfinite(values), values, np.nan)
        axes.plot(
            rounds, shown, color=look(name).colour, linestyle=look(name).line, linewidth=width, label=name
        )
    for name, value in (level or {}).items():
        axes.axhline(value, color=look(name).colour, linestyle=(0, (1, 1)), linewidth=1.2, label=name)
    axes.set(xlabel="round", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    axes.legend(frameon=False)
    return _save(figure, path)


def hospitals(
    results: Mapping[str, Assessment], metric: str, path: str | Path, sizes: Mapping[str, int] | None = None
) -> Path:
    """Draws each method's estimate with its 95 % interval, grouped by hospital, to `path`; `sizes` adds each
    group's number of test patients."""
    groups = names_of(results)
    if len(groups) > _MOST_HOSPITALS:
        raise ValueError(
            f"a figure shows at most {_MOST_HOSPITALS} hospitals, got {len(groups)}: draw some of them, or print the table"
        )
    figure, axes = _figure(min(_MOST_INCHES, 1.6 + 1.25 * len(groups)), 4.2)
    step = 0.78 / len(results)
    for j, (method, assessment) in enumerate(results.items()):
        estimates = [estimate(method, assessment, group, metric) for group in groups]
        value, low, high = (
            np.array([getattr(each, field) for each in estimates]) for field in ("value", "low", "high")
        )
        score = np.array([each.is_score for each in estimates])
        x = np.arange(len(groups)) + (j - (len(results) - 1) / 2) * step
        error = np.nan_to_num(np.stack([value - low, high - value]))
        drawn: dict[str, Any] = {
            "color": look(method).colour,
            "fmt": look(method).marker,
            "markersize": 5,
            "elinewidth": 1.4,
            "capsize": 2.5,
        }
        if (~score).any() or not len(groups):
            axes.errorbar(x[~score], value[~score], yerr=error[:, ~score], label=method, **drawn)
        if score.any():
            label = None if (~score).any() else method
            _, _, bars = axes.errorbar(
                x[score], value[score], yerr=error[:, score], label=label, markerfacecolor="white", **drawn
            )
            bars[0].set_linestyle("--")
    if not any(
        np.isfinite(estimate(method, assessment, group, metric).value)
        for method, assessment in results.items()
        for group in groups
    ):
        axes.text(
            0.5,
            0.5,
            "not defined at any hospital",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color="0.45",
        )
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color="0.88", linewidth=0.8)
    names = [f"{group}\n(n = {sizes[group]})" if sizes and group in sizes else group for group in groups]
    axes.set_xticks(range(len(groups)), names)
    kinds = (
        " (hollow: score)"
        if any(
            estimate(m, assessment, group, metric).is_score
            for m, assessment in results.items()
            for group in groups
        )
        else ""
    )
    axes.set(ylabel=f"{METRICS[metric]}, 95 % interval{kinds}", xlim=(-0.5, len(groups) - 0.5))
    _legend_above(figure, axes, len(results))
    return _save(figure, path)


def calibration(predictions: Mapping[str, Predictions], path: str | Path, groups: int = 8) -> Path:
    """Draws the share of patients with the outcome against their predicted risk, a panel for each method, to
    `path`.

    A point is one of `groups` equal parts of the patients, ordered by risk; its bar is Wilson's 95 % interval
    for the share."""
    if not predictions:
        raise ValueError("a calibration figure needs at least one method: {method: Predictions}")
    columns = min(len(predictions), 3)
    rows = -(-len(predictions) // columns)
    figure = Figure(figsize=(0.5 + 2.5 * columns, 0.6 + 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    sizes = {len(each.risk) for each in predictions.values()}
    for axes, (name, each) in zip(panels, predictions.items(), strict=False):
        (colour, _, marker), (risk, share, count) = look(name), calibration_curve(each, groups)
        low, high = wilson(share, count)
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=(0, (4, 3)))
        axes.errorbar(
            risk,
            share,
            yerr=np.stack([share - low, high - share]),
            fmt=marker,
            color=colour,
            markersize=5,
            elinewidth=1.2,
        )
        axes.plot(risk, share, color=colour, linewidth=1, alpha=0.6)
        axes.set_title(name if len(sizes) == 1 else f"{name}, n = {len(each.risk)}", fontsize="medium")
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        _plain(axes)
    for axes in panels[len(predictions) :]:
        axes.set_visible(False)
    # Also where the row below is not full.
    for axes in panels[max(0, len(predictions) - columns) : len(predictions)]:
        axes.tick_params(labelbottom=True)
    number = f", n = {min(sizes)}" if len(sizes) == 1 else ""
    figure.supxlabel(
        f"predicted risk, at most {groups} groups of nearly equal size{number}", fontsize="medium"
    )
    figure.supylabel("share with the outcome, 95 % interval", fontsize="medium")
    return _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(columns, 6), frameon=False
    )


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
