"""Small charts as SVG text, with nothing to load: lines over rounds, intervals side by side, calibration, and
the flow of rows.

>>> lines({"loss": ([1, 2, 3], [0.7, 0.5, 0.4])}, "loss").startswith("<svg")
True
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

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
    """A point with its interval for each name; ends that are not finite are not drawn."""
    known = {name: row for name, row in rows.items() if np.isfinite(row[0])}
    if not known:
        return ""
    ends = np.array([x for row in known.values() for x in row if np.isfinite(x)])
    place, height = _Axes(float(ends.min()), float(ends.max()), 0, 1), 40 + 22 * len(known)
    body = [_text(_WIDTH / 2 + 60, height - 6, xlabel, anchor="middle")]
    for i, (name, (value, low, high)) in enumerate(known.items()):
        y = 18 + 22 * i
        at = [place.x(v, left=180) for v in (value, low, high)]
        body.append(_text(172, y + 4, name[:28], anchor="end"))
        if np.isfinite([low, high]).all():
            body.append(
                f'<line x1="{at[1]:.1f}" x2="{at[2]:.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[0]}" stroke-width="2"/>'
            )
        body.append(f'<circle cx="{at[0]:.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>')
        body.append(_text(at[0], y - 6, f"{value:.3g}", anchor="middle", size=10))
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
        at = [(place.x(float(p[0])), place.y(float(p[1]))) for p in points]
        body.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>'
        )
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in at]
        body.append(_text(_WIDTH - 8, _HEIGHT - _BOTTOM - 10 - 15 * i, name, anchor="end", colour=colour))
    return _svg(body, "calibration")


def flow(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """From rows in a site's table to those trained on and held out: a line of boxes for each site."""
    body, width = [], 880
    steps = ("rows in", "left out", "people", "trained on", "held out")
    for i, (name, said) in enumerate(sites.items()):
        y = 10 + 74 * i
        body.append(_text(4, y + 28, name[:18], weight="bold"))
        shown = [(step, said[step]) for step in steps if step in said]
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


class _Axes:
    """Where values lie on a chart."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.x0, self.x1 = (x0, x1) if x1 > x0 else (x0 - 0.5, x0 + 0.5)
        pad = 0.05 * (y1 - y0) or 0.5
        self.y0, self.y1 = (y0, y1) if (y0, y1) == (0, 1) else (y0 - pad, y1 + pad)

    def x(self, value: float, left: float = _LEFT) -> float:
        return left + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - left - 20)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _BOTTOM - _TOP)

    def frame(self, xlabel: str, ylabel: str) -> str:
        """Axes with four ticks each."""
        body = [f'<path d="M{_LEFT} {_TOP} V{_HEIGHT - _BOTTOM} H{_WIDTH - 20}" fill="none" stroke="#555"/>']
        for value in np.linspace(self.x0, self.x1, 5):
            body.append(
                _text(self.x(value), _HEIGHT - _BOTTOM + 14, f"{value:.3g}", anchor="middle", size=10)
            )
        for value in np.linspace(self.y0, self.y1, 5):
            body.append(_text(_LEFT - 6, self.y(value) + 4, f"{value:.3g}", anchor="end", size=10))
        middle = (_HEIGHT - _BOTTOM) / 2
        body.append(_text(_WIDTH / 2, _HEIGHT - 4, xlabel, anchor="middle"))
        body.append(
            f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, ylabel, anchor="middle")}</g>'
        )
        return "".join(body)


def _text(
    x: float,
    y: float,
    said: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = "#222",
    weight: str = "normal",
) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(said)}</text>'


def _svg(body: Sequence[str], label: str, height: float = _HEIGHT, width: float = _WIDTH) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(label)}" font-family="sans-serif">'
    return head + "".join(body) + "</svg>"
