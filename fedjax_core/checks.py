"""Checks of the numbers and functions that a user gives: early, and naming what was given and what it must be.

>>> at_least(1, rounds=0)
Traceback (most recent call last):
ValueError: rounds must be a whole number of at least 1, got 0
"""

import inspect
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


def takes(name: str, function: Any, *arguments: str) -> None:
    """Raises, naming the argument `name`, where this is not a function that can be called with arguments such
    as these.

    >>> takes("weighting", lambda: 1.0, "seen")
    Traceback (most recent call last):
    TypeError: weighting= must be a function (seen), and the one given takes (): too many positional arguments
    """
    wanted = f"{name}= must be a function ({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"{wanted}, got {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell theirs
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        shown = "(" + ", ".join(map(str, signature.parameters.values())) + ")"
        raise TypeError(f"{wanted}, and the one given takes {shown}: {error}") from None
