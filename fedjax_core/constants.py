"""Arrays that a model reads and nobody trains: arguments of each compiled program instead of a part of its
text.

    task.constants        those that a task reads, with `now`
    compiled(f, ...)      jax.jit(f), in which they are arguments

A frozen body of a billion numbers within a program's text would be copied at each step of compiling, and
written to disk with the program. Where no `compiled` function is being traced, `now` is the arrays
themselves, so that a task is right anywhere.

>>> body = Constants({"w": np.ones((2, 2), np.float32)})
>>> program = compiled(lambda x: x @ body.now["w"], (body,))
>>> program(jnp.ones(2, jnp.float32)).tolist(), "dense" in program.lower(jnp.ones(2, jnp.float32)).as_text()
([2.0, 2.0], False)
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

_bound: ContextVar[Mapping[int, Any] | None] = ContextVar("arguments", default=None)
"""The constants of the program that is being traced."""


class Constants:
    """A pytree of arrays, with None in the place of what is trained. Two are equal only if they are the same
    object."""

    def __init__(self, arrays: Any) -> None:
        self.arrays = jax.tree.map(np.asarray, arrays)
        """On the host, as they were given."""
        self._on_device: Any = None
        self._kept: dict[Any, Any] = {}
        """The caches of functions of the tasks that read them (`remembered`)."""

    def __repr__(self) -> str:
        return f"Constants({len(jax.tree.leaves(self.arrays))} arrays, {self.nbytes:,} B)"

    def __getstate__(self) -> dict[str, Any]:
        """Without what lies on a device, for another process."""
        return {"arrays": self.arrays, "_on_device": None, "_kept": {}}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(x.nbytes for x in jax.tree.leaves(self.arrays))

    @property
    def now(self) -> Any:
        """The arrays as JAX's: within a `compiled` function its arguments, else on the default device, where
        they are put once."""
        given = _bound.get() or {}
        if id(self) in given:
            return given[id(self)]
        if self._on_device is None:
            with jax.ensure_compile_time_eval():
                self._on_device = jax.tree.map(jnp.asarray, self.arrays)
        return self._on_device


def compiled(
    f: Callable[..., Any],
    constants: Sequence[Constants],
    *,
    place: Callable[[Any], Any] | None = None,
    static_argnums: tuple[int, ...] = (),
    donate_argnums: tuple[int, ...] = (),
    **options: Any,
) -> Any:
    """`jax.jit(f)` with these constants as arguments; plain `jax.jit(f)` where there are none.

    `place` puts the arrays where the program reads them, once; else they lie on the default device.
    """
    if not constants:
        return jax.jit(f, static_argnums=static_argnums, donate_argnums=donate_argnums, **options)
    return _Compiled(f, tuple(constants), place, static_argnums, donate_argnums, options)


def remembered(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`functools.lru_cache` for a function of a task or a round; a result that reads constants is kept with
    these, and freed with them.

    A cached program or shape holds its task, and so the task's constants.
    """

    def decorate(f: Callable[P, T]) -> Callable[P, T]:
        usual = lru_cache(maxsize=maxsize)(f)

        def cached(of: Any, *rest: Any, **named: Any) -> Any:
            constants = (of.algorithm.task if hasattr(of, "algorithm") else of).constants
            if not constants:
                return usual(of, *rest, **named)
            kept = constants[-1]._kept
            if cached not in kept:
                kept[cached] = lru_cache(maxsize=maxsize)(f)
            return kept[cached](of, *rest, **named)

        cached.cache_clear = usual.cache_clear  # type: ignore[attr-defined]
        return cast(Callable[P, T], wraps(f)(cached))

    return decorate


class _Compiled:
    """A compiled function that is called, and lowered, without its constants."""

    def __init__(
        self, f: Any, constants: tuple[Constants, ...], place: Any, static: Any, donate: Any, options: Any
    ) -> None:
        def with_constants(given: Sequence[Any], *arguments: Any) -> Any:
            here = {id(one): arrays for one, arrays in zip(constants, given, strict=True)}
            before = _bound.set({**(_bound.get() or {}), **here})
            try:
                return f(*arguments)
            finally:
                _bound.reset(before)

        static, donate = (tuple(i + 1 for i in numbers) for numbers in (static, donate))
        self._jit = jax.jit(with_constants, static_argnums=static, donate_argnums=donate, **options)
        self._constants, self._place, self._placed = constants, place, None

    def __call__(self, *arguments: Any) -> Any:
        return self._jit(self._given(), *arguments)

    def lower(self, *arguments: Any) -> Any:
        """Lowers the program, as `lower` of `jax.jit` does."""
        return self._jit.lower(self._given(), *arguments)

    def _given(self) -> Any:
        if self._place is None:
            return [one.now for one in self._constants]
        if self._placed is None:
            self._placed = self._place([one.arrays for one in self._constants])
        return self._placed
