"""The report's figures, as PNG files: convergence, one bar a hospital and method, calibration.

Colours are Okabe and Ito's, which people with any kind of colour vision can tell apart; line styles and markers differ as well,
so that the figures survive a grey printer.

>>> import tempfile
>>> convergence({"FedAvg": [0.7, 0.5, 0.4]}, f"{tempfile.mkdtemp()}/loss.png", ylabel="training loss").name
'loss.png'
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedjax_core.run.report import METRICS, Assessment, Predictions, calibration_curve, wilson

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 160


def convergence(curves: Mapping[str, Sequence[float]], path: str | Path, *, ylabel: str, level: Mapping[str, float] | None = None) -> Path:
    """A line a method over the rounds, written to `path`; `level` adds horizontal lines for methods that have no rounds."""
    figure, axes = _figure(6.4, 4.0)
    widths = np.linspace(3.2, 1.4, len(curves))  # later lines lie above and are thinner, so that equal ones are all seen
    for (name, values), width, colour, style in zip(curves.items(), widths, cycle(_COLOURS), cycle(_STYLES), strict=False):
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, linestyle=style, linewidth=width, label=name)
    for name, value in (level or {}).items():
        axes.axhline(value, color="0.45", linestyle=(0, (1, 1)), linewidth=1.2, label=name)
    axes.set(xlabel="round", ylabel=ylabel)
    axes.margins(x=0.01)
    axes.legend(frameon=False)
    return _save(figure, path)


def hospitals(results: Mapping[str, Assessment], metric: str, path: str | Path, sizes: Mapping[str, int] | None = None) -> Path:
    """A point a method with its 95 % interval, grouped by hospital, written to `path`; `sizes` adds each group's test patients."""
    groups = list(next(iter(results.values())))
    figure, axes = _figure(1.6 + 1.25 * len(groups), 4.2)
    step = 0.78 / len(results)
    for j, ((method, found), colour, marker) in enumerate(zip(results.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False)):
        estimates = [found[group][metric] for group in groups]
        value, low, high = (np.array([getattr(each, field) for each in estimates]) for field in ("value", "low", "high"))
        x = np.arange(len(groups)) + (j - (len(results) - 1) / 2) * step
        error = np.nan_to_num(np.stack([value - low, high - value]))
        axes.errorbar(x, value, yerr=error, fmt=marker, color=colour, markersize=5, elinewidth=1.4, capsize=2.5, label=method)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color="0.88", linewidth=0.8)
    names = [f"{group}\n(n = {sizes[group]})" if sizes and group in sizes else group for group in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set(ylabel=f"{METRICS[metric]}, 95 % interval", xlim=(-0.5, len(groups) - 0.5))
    _legend_above(figure, axes, len(results))
    return _save(figure, path)


def calibration(found: Mapping[str, Predictions], path: str | Path, groups: int = 8) -> Path:
    """Share of patients with the outcome against the risk they were given, a panel a method, written to `path`.

    A point is one of `groups` equal parts of the patients, ordered by risk; its bar is Wilson's 95 % interval for the share.
    """
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(0.5 + 2.5 * columns, 0.6 + 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, each), colour, marker in zip(panels, found.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False):
        risk, share, count = calibration_curve(each, groups)
        low, high = wilson(share, count)
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=(0, (4, 3)))
        axes.errorbar(risk, share, yerr=np.stack([share - low, high - share]), fmt=marker, color=colour, markersize=5, elinewidth=1.2)
        axes.plot(risk, share, color=colour, linewidth=1, alpha=0.6)
        axes.set_title(name, fontsize="medium")
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        _plain(axes)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(found) - columns) : len(found)]:  # also where the row below is not full
        axes.tick_params(labelbottom=True)
    figure.supxlabel(f"predicted risk, {groups} groups of equal size, n = {len(next(iter(found.values())).risk)}", fontsize="medium")
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
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(columns, 6), frameon=False)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
