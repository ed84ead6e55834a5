"""Small charts as SVG text, with nothing to load: lines over rounds, intervals side by side, calibration, and
the flow of rows.

>>> lines({"loss": ([1, 2, 3], [0.7, 0.5, 0.4])}, "loss").startswith("<svg")
True
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

STEPS = ("rows in", "left out", "people", "trained on", "held out")
"""The steps of the flow of rows, drawn where they are known."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people with any kind of colour vision can tell apart."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 620, 260, 60, 36, 12
_DASHES = ("", "6 3", "2 3", "8 3 2 3")


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str, xlabel: str = "round"
) -> str:
    """A line for each name over its (x, y); a value that is not finite is a gap."""
    every = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves.values()]
    finite = np.concatenate([y[np.isfinite(y)] for _, y in every] or [np.zeros(0)])
    if not len(finite):
        return ""
    x0, x1 = min(x.min() for x, _ in every if len(x)), max(x.max() for x, _ in every if len(x))
    place = _Axes(float(x0), float(x1), float(finite.min()), float(finite.max()))
    body = [place.frame(xlabel, ylabel)]
    for i, (name, (x, y)) in enumerate(zip(curves, every, strict=True)):
        colour, dash = COLOURS[i % len(COLOURS)], _DASHES[i // len(COLOURS) % len(_DASHES)]
        for part in np.split(np.arange(len(y)), np.flatnonzero(~np.isfinite(y))):
            part = part[np.isfinite(y[part])]
            if len(part):
                points = " ".join(f"{place.x(x[j]):.1f},{place.y(y[j]):.1f}" for j in part)
                body.append(
                    f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" points="{points}"/>'
                )
        body.append(_text(_WIDTH - 8, _TOP + 14 + 15 * i, name, anchor="end", colour=colour))
    return _svg(body, f"{ylabel} by {xlabel}")


def intervals(rows: Mapping[str, tuple[float, float, float]], xlabel: str) -> str:
    """A point with its interval for each name; ends that are not finite are not drawn.

    The axis is logarithmic for numbers above 0 that differ by a factor above 20, such as hazard ratios of
    small hospitals.
    """
    known = {name: row for name, row in rows.items() if np.isfinite(row[0])}
    if not known:
        return ""
    ends = np.array([x for row in known.values() for x in row if np.isfinite(x)])
    scale = np.log if ends.min() > 0 and ends.max() > 20 * ends.min() else np.asarray
    least, most = float(ends.min()), float(ends.max())
    place, height = _Axes(float(scale(least)), float(scale(most)), 0, 1), 60 + 22 * len(known)
    body = [_text(_WIDTH / 2 + 60, height - 6, xlabel, anchor="middle")]
    for tick in ticks(least, most, log=scale is np.log):
        x = place.x(float(scale(tick)), left=180)
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 36}" stroke="#ddd"/>')
        body.append(_text(x, height - 22, f"{tick:g}", anchor="middle", size=10))
    for i, (name, (value, low, high)) in enumerate(known.items()):
        y = 18 + 22 * i
        positions = [place.x(float(scale(v)), left=180) for v in (value, low, high)]
        body.append(_text(172, y + 4, name[:28], anchor="end"))
        if np.isfinite([low, high]).all():
            body.append(
                f'<line x1="{positions[1]:.1f}" x2="{positions[2]:.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[0]}" stroke-width="2"/>'
            )
        body.append(f'<circle cx="{positions[0]:.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>')
        body.append(_text(positions[0], y - 6, f"{value:.3g}", anchor="middle", size=10))
    return _svg(body, xlabel, height)


def calibration(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Share with the outcome over mean risk, a line for each name, and the diagonal."""
    place, body = _Axes(0, 1, 0, 1), []
    body.append(place.frame("mean risk that the model says", "share with the outcome"))
    body.append(
        f'<line x1="{place.x(0):.1f}" y1="{place.y(0):.1f}" x2="{place.x(1):.1f}" y2="{place.y(1):.1f}" stroke="#999"/>'
    )
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        positions = [(place.x(float(p[0])), place.y(float(p[1]))) for p in points]
        body.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in positions)}"/>'
        )
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in positions]
        body.append(_text(_WIDTH - 8, _HEIGHT - _BOTTOM - 10 - 15 * i, name, anchor="end", colour=colour))
    return _svg(body, "calibration")


def flow(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """From rows in a site's table to those trained on and held out: a line of boxes for each site."""
    body, width = [], 880
    for i, (name, counts) in enumerate(sites.items()):
        y = 10 + 74 * i
        body.append(_text(4, y + 28, name[:18], weight="bold"))
        shown = [(step, counts[step]) for step in STEPS if step in counts]
        for j, (step, value) in enumerate(shown):
            x = 140 + 148 * j
            out = step == "left out"
            count = sum(value.values()) if isinstance(value, Mapping) else value
            dash = ' stroke-dasharray="4 3"' if out else ""
            body.append(
                f'<rect x="{x}" y="{y}" width="126" height="48" rx="5" fill="{"#fff4ec" if out else "#eef5fb"}" stroke="#888"{dash}/>'
            )
            body.append(_text(x + 63, y + 18, step, anchor="middle", size=11))
            body.append(_text(x + 63, y + 37, str(count), anchor="middle", weight="bold"))
            if j:
                body.append(f'<path d="M{x - 22} {y + 24} h16 m-5 -4 l5 4 l-5 4" fill="none" stroke="#555"/>')
    return _svg(body, "flow of rows and people", 12 + 74 * len(sites), width) if sites else ""


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten, and on a logarithmic axis 1, 2
    and 5 of each decade, or its powers of ten alone.

    >>> ticks(0, 60), ticks(1.2, 1.36), ticks(0.15, 380, log=True)
    ([0.0, 20.0, 40.0, 60.0], [1.2, 1.25, 1.3, 1.35], [1.0, 10.0, 100.0])
    """
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = (1, 2, 5) if len(decades) <= 3 else (1,)
        return [mark * 10.0**d for d in decades for mark in marks if low <= mark * 10.0**d <= high]
    step = 10.0 ** math.floor(math.log10((high - low) / 3)) if high > low else 1.0
    step *= max(factor for factor in (1, 2, 5) if factor * step <= (high - low) / 3 or factor == 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


class _Axes:
    """The axes of a chart, and where values lie on it."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.x0, self.x1 = (x0, x1) if x1 > x0 else (x0 - 0.5, x0 + 0.5)
        pad = 0.05 * (y1 - y0) or 0.5
        self.y0, self.y1 = (y0, y1) if (y0, y1) == (0, 1) else (y0 - pad, y1 + pad)

    def x(self, value: float, left: float = _LEFT) -> float:
        return left + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - left - 20)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _BOTTOM - _TOP)

    def frame(self, xlabel: str, ylabel: str) -> str:
        """Axes with a few round ticks each."""
        body = [f'<path d="M{_LEFT} {_TOP} V{_HEIGHT - _BOTTOM} H{_WIDTH - 20}" fill="none" stroke="#555"/>']
        for value in ticks(self.x0, self.x1):
            body.append(_text(self.x(value), _HEIGHT - _BOTTOM + 14, f"{value:g}", anchor="middle", size=10))
        for value in ticks(self.y0, self.y1):
            body.append(_text(_LEFT - 6, self.y(value) + 4, f"{value:g}", anchor="end", size=10))
        middle = (_HEIGHT - _BOTTOM) / 2
        body.append(_text(_WIDTH / 2, _HEIGHT - 4, xlabel, anchor="middle"))
        body.append(
            f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, ylabel, anchor="middle")}</g>'
        )
        return "".join(body)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = "#222",
    weight: str = "normal",
) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'


def _svg(body: Sequence[str], label: str, height: float = _HEIGHT, width: float = _WIDTH) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(label)}" font-family="sans-serif">'
    return head + "".join(body) + "</svg>"
