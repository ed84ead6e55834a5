"""Checks of the numbers that a user gives: early, and naming what was given and what it must be.

>>> at_least(1, rounds=0)
Traceback (most recent call last):
ValueError: rounds must be a whole number of at least 1, got 0
"""

import operator
from typing import Any

import numpy as np


def at_least(least: int, **values: Any) -> None:
    """Raises, naming the argument, where one of these is not a whole number of at least `least`."""
    for name, value in values.items():
        try:
            whole = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
        except TypeError:
            whole = None
        if whole is None or whole < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
