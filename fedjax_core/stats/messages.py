"""Statistics as JSON messages to sites: plain values, read strictly, so that a site computes only
statistics that it knows.

    GlmStep(design=..., beta=(0.1, -2.0))  ─►  {"statistic": "glm", "design": {...}, "beta": [0.1, -2.0]}  ─►  the same, at the site

>>> from fedjax_core.stats.survey import Survey
>>> decode(encode(Survey(("age", "sex"), ("sex",))))
Survey(names=('age', 'sex'), levels=('sex',), partial=False)
>>> decode(b'{"statistic": "shell", "command": "ls"}')
Traceback (most recent call last):
ValueError: there is no statistic 'shell'; there are at-risk, bins, cox, cox-moments, describe, event-times, \
feature-products, filled, glm, glm-moments, glmm, harmonised, ordinal, products, survey, visits, weighted
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from fedjax_core.stats.base import Statistic
from fedjax_core.stats.cox import CoxMoments, CoxStep
from fedjax_core.stats.describe import Describe
from fedjax_core.stats.expressions import check
from fedjax_core.stats.glm import GlmMoments, GlmStep
from fedjax_core.stats.glmm import GlmmStep
from fedjax_core.stats.harmonise import FeatureProducts, Harmonised
from fedjax_core.stats.histogram import Bins
from fedjax_core.stats.imputation import Filled
from fedjax_core.stats.lmm import Products
from fedjax_core.stats.ordinal import OrdinalStep
from fedjax_core.stats.survey import Survey
from fedjax_core.stats.survival import AtRisk, EventTimes
from fedjax_core.stats.visits import Visits
from fedjax_core.stats.weighting import Weighted

STATISTICS: Mapping[str, type] = {
    "at-risk": AtRisk,
    "bins": Bins,
    "cox": CoxStep,
    "cox-moments": CoxMoments,
    "describe": Describe,
    "event-times": EventTimes,
    "feature-products": FeatureProducts,
    "filled": Filled,
    "glm": GlmStep,
    "glm-moments": GlmMoments,
    "glmm": GlmmStep,
    "harmonised": Harmonised,
    "ordinal": OrdinalStep,
    "products": Products,
    "survey": Survey,
    "visits": Visits,
    "weighted": Weighted,
}
"""All statistics that a site computes on request."""

_DEEP = 6  # dots in the path of a nested statistic: rows are changed three times at most


def name_of(statistic: Statistic) -> str:
    """The name of a statistic in messages and audit logs, such as "filled glm"; raises TypeError for one that
    sites do not know."""
    for name, kind in STATISTICS.items():
        if type(statistic) is kind:
            then = getattr(statistic, "then", None)
            return name if then is None else f"{name} {name_of(then)}"
    raise TypeError(
        f"{type(statistic).__name__} is no statistic that sites know; there are {', '.join(STATISTICS)}"
    )


def encode(statistic: Statistic) -> bytes:
    """The statistic as JSON."""
    return json.dumps(_plain(statistic), allow_nan=False).encode()


def _plain(statistic: Statistic) -> dict[str, Any]:
    fields: dict[str, Any] = dataclasses.asdict(statistic)  # type: ignore[call-overload]
    if "then" in fields:  # the statistic of rows that are changed first
        fields["then"] = _plain(statistic.then)  # type: ignore[attr-defined]
    return {"statistic": name_of(statistic).partition(" ")[0]} | fields


def decode(text: bytes) -> Statistic:
    """The statistic in a JSON message; raises ValueError for an unknown one, for other fields, and for values
    of other types."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the message says no statistic") from None
    return _read(message, "")


def _read(message: Any, where: str) -> Statistic:
    if not isinstance(message, dict) or "statistic" not in message or where.count(".") > _DEEP:
        raise ValueError("the message says no statistic")
    name = message.pop("statistic")
    if not isinstance(name, str) or name not in STATISTICS:
        raise ValueError(f"there is no statistic {str(name)[:40]!r}; there are {', '.join(STATISTICS)}")
    statistic: Statistic = _built(STATISTICS[name], message, f"{where}.{name}" if where else name)
    return statistic


def _built(kind: Any, message: Any, where: str) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(message, dict) or message.keys() != fields:
        raise ValueError(f"{where} has fields {', '.join(sorted(fields))}, and the message has others")
    kinds = typing.get_type_hints(kind)
    return kind(**{name: _value(kinds[name], value, f"{where}.{name}") for name, value in message.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Statistic:
        return _read(value, where)
    if dataclasses.is_dataclass(kind):
        return _built(kind, value, where)
    if origin is types.UnionType:
        return None if value is None else _value(arguments[0], value, where)
    if origin is list:
        return check(value)
    if origin is tuple and isinstance(value, list):
        each = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(each) == len(value):
            return tuple(_value(one, x, where) for one, x in zip(each, value, strict=True))
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (str, bool, int) and type(value) is kind:
        return value
    raise ValueError(f"{where} is not of the type that it should be")
