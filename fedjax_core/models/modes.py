"""Tells a Flax module whether it trains, by arguments of the method that is called.

>>> from flax import linen
>>> class Layer(linen.Module):
...     def __call__(self, x, deterministic):
...         return x
>>> Modes({}, {}).of(Layer(), train=True), Modes({}, {}).of(Layer(), train=False)
({'deterministic': False}, {'deterministic': True})
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Modes(NamedTuple):
    """The arguments of the module in training and in evaluation, besides the usual ones."""

    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]

    def of(self, module: Any, train: bool, method: str = "__call__") -> dict[str, Any]:
        """The arguments that tell a method of the module whether it trains."""
        usual = {"train": train, "training": train, "is_training": train, "deterministic": not train}
        if not hasattr(type(module), method):
            raise ValueError(
                f"features={method!r} is no method of {type(module).__name__}: write one that returns [B, d], and call it"
            )
        accepted = inspect.signature(getattr(type(module), method)).parameters
        open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values())
        given = self.training if train else self.evaluation
        if wrong := [name for name in given if name not in accepted and not open_ended]:
            raise ValueError(
                f"{type(module).__name__}.{method} takes no argument {wrong[0]!r}: it has {', '.join(list(accepted)[1:])}"
            )
        arguments = {name: value for name, value in usual.items() if name in accepted} | dict(given)
        needed = [
            name
            for name, one in list(accepted.items())[2:]
            if one.default is one.empty and one.kind in _NAMED and name not in arguments
        ]
        if needed:
            raise ValueError(
                f"{type(module).__name__}.{method} needs {needed[0]!r}: say what it is in training and in evaluation, as in "
                f"from_flax(..., training={{{needed[0]!r}: True}}, evaluation={{{needed[0]!r}: False}})"
            )
        return arguments
