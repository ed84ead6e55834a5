"""The settings of a piece: the arguments of the function that made it, for errors, logs and configurations.

>>> from typing import NamedTuple
>>> class Piece(NamedTuple):
...     settings: Settings
>>> @with_settings
... def clip(bound, ends=2):
...     return Piece(Settings())
>>> clip(1.0).settings, clip(1.0).settings["ends"]
(Settings(bound=1.0, ends=2), 2)
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Settings(Mapping[str, Any]):
    """{argument: value}. It equals only itself, whatever the values are, so that pieces with settings can be
    compared and hashed."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        """Shows numbers and words as they are, anything else by its type."""
        plain = (bool, int, float, str, type(None))
        shown = [
            f"{name}={value if isinstance(value, plain) else type(value).__name__}"
            for name, value in self._values.items()
        ]
        return f"Settings({', '.join(shown)})"


def arguments(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """{name: value} of a call of `f` with these arguments, its defaults too; raises TypeError, naming `f`, as
    the call would."""
    signature = inspect.signature(f)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        names = signature.parameters
        any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values())
        unknown = [] if any_name else [name for name in kwargs if name not in names]
        why = f"there is no argument {unknown[0]!r}" if unknown else str(error)
        raise TypeError(f"{getattr(f, '__name__', f)}({', '.join(names)}): {why}") from None
    bound.apply_defaults()
    values: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            values |= value
        else:
            values[name] = value
    return values


def with_settings(build: Callable[P, T]) -> Callable[P, T]:
    """`build`, whose result, a NamedTuple with a field `settings`, gets the arguments of the call there."""

    @functools.wraps(build)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> T:
        made: Any = build(*args, **kwargs)
        return made._replace(settings=Settings(**arguments(build, *args, **kwargs)))

    return recorded
