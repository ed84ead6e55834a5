"""Conversion of known units, and the factors by which a column in a wrong unit is recognised.

    convert(x, "cm", "m")      of one dimension: length, mass, time, pressure, temperature, amounts a volume
    suspects(x, 18, 110)       factors that would bring nearly all values into the range

Between mass and substance, as in mg/dL to umol/L of creatinine, the factor depends on the substance: give it
as `factor`.

>>> convert(np.array([180.0]), "cm", "m").tolist(), convert(np.array([98.6]), "F", "C").round(1).tolist()
([1.8], [37.0])
"""

import numpy as np

# unit: (dimension, factor to the first unit of it, what is added before the factor)
_UNITS: dict[str, tuple[str, float, float]] = {
    "m": ("length", 1, 0), "cm": ("length", 0.01, 0), "mm": ("length", 0.001, 0), "in": ("length", 0.0254, 0), "ft": ("length", 0.3048, 0),
    "kg": ("mass", 1, 0), "g": ("mass", 0.001, 0), "lb": ("mass", 0.45359237, 0),
    "year": ("time", 365.25, 0), "month": ("time", 365.25 / 12, 0), "week": ("time", 7, 0), "day": ("time", 1, 0),
    "hour": ("time", 1 / 24, 0),
    "mmHg": ("pressure", 1, 0), "kPa": ("pressure", 7.50061683, 0), "cmH2O": ("pressure", 0.73555912, 0),
    "C": ("temperature", 1, 0), "F": ("temperature", 5 / 9, -32), "K": ("temperature", 1, -273.15),
    "g/L": ("mass a volume", 1, 0), "g/dL": ("mass a volume", 10, 0), "mg/dL": ("mass a volume", 0.01, 0),
    "mg/L": ("mass a volume", 0.001, 0),
    "mol/L": ("substance a volume", 1, 0), "mmol/L": ("substance a volume", 1e-3, 0), "umol/L": ("substance a volume", 1e-6, 0),
    "1": ("share", 1, 0), "%": ("share", 0.01, 0),
}  # fmt: skip

KNOWN = {
    1e3: "a factor of 1000, as of g and kg", 1e-3: "a factor of 1000, as of kg and g", 100.0: "a factor of 100, as of m and cm",
    0.01: "a factor of 100, as of cm and m, or of % and shares", 10.0: "a factor of 10, as of g/dL and g/L",
    0.1: "a factor of 10, as of g/L and g/dL",
    1 / 88.42: "creatinine in umol/L, where mg/dL was agreed", 88.42: "creatinine in mg/dL, where umol/L was agreed",
    1 / 18.016: "glucose in mg/dL, where mmol/L was agreed", 18.016: "glucose in mmol/L, where mg/dL was agreed",
    0.45359237: "pounds, where kg was agreed", 2.54: "inches, where cm was agreed", 1 / 12: "months, where years were agreed",
    1 / 365.25: "days, where years were agreed", 7.50061683: "kPa, where mmHg was agreed",
}  # fmt: skip
_ENOUGH = 0.95  # of the values are in range once the unit is right
_WRONG = 0.5  # of them are out of it while it is wrong


def convert(x: np.ndarray, given: str, wanted: str) -> np.ndarray:
    """x [rows] in the unit `wanted`; raises ValueError for unknown units, and for units of different
    dimensions."""
    if given == wanted:
        return x
    if odd := [unit for unit in (given, wanted) if unit not in _UNITS]:
        raise ValueError(
            f"the unit {odd[0]!r} is not known, so {given!r} does not become {wanted!r} by itself: give factor = ..., and offset"
        )
    (dimension, factor, shift), (other, back, unshift) = _UNITS[given], _UNITS[wanted]
    if dimension != other:
        raise ValueError(
            f"{given!r} is of {dimension}, and {wanted!r} of {other}: give factor = ... where the substance is known"
        )
    return (x + shift) * factor / back - unshift


def suspects(x: np.ndarray, low: float, high: float) -> list[tuple[float, str]]:
    """[(factor, its meaning)] that bring nearly all values [rows] into the range, where more than half of
    them are outside."""
    known = x[np.isfinite(x)]

    def share(values: np.ndarray) -> float:
        return float(((values >= low) & (values <= high)).mean())

    if len(known) < 5 or share(known) > 1 - _WRONG:
        return []
    return [(factor, meaning) for factor, meaning in KNOWN.items() if share(known * factor) >= _ENOUGH]
