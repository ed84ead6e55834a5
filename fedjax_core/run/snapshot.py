"""A saved state as it is read back: named arrays on the host, to be put into a state of the same structure.

>>> saved = Saved(3, {}, [Leaf("['w']", "int32", (2,), None)], [np.array([1, 2], np.int32)])
>>> saved.place({"w": jnp.zeros(2, jnp.int32)})["w"].tolist()
[1, 2]
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.describe import digest


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class Damaged(Exception):
    """A checkpoint cannot be trusted; the text says why."""


class Leaf(NamedTuple):
    """One array of a saved state."""

    name: str  # its path in the tree: server.params['w']
    dtype: str
    shape: tuple[int, ...]
    key: str | None  # the implementation, for a typed PRNG key, whose data is what is stored
    digest: str = ""  # SHA-256 of the bytes, where nothing else verifies them

    @property
    def kind(self) -> str:
        """The description that must agree for the leaf to replace another: dtype, shape and kind of key."""
        return f"{f'key<{self.key}> ' if self.key else ''}{self.dtype}{list(self.shape)}"


@runtime_checkable
class Savable(Protocol):
    """A part of a state with a saved form of its own, such as a store that holds the rows of many clients."""

    def saved(self) -> Any:
        """Its saved form: arrays by name, one of them `who` [n]."""

    def shapes(self, touched: int) -> Any:
        """The shapes of `saved()` for this many rows."""

    def restored(self, saved: Any) -> Any:
        """The part, restored from its saved form."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read back and verified, still on the host."""

    round: int
    about: dict[str, Any]
    leaves: list[Leaf]
    arrays: list[np.ndarray]

    def place(
        self, like: Any, what: str = "the checkpoint", otherwise: str = "choose another run_dir"
    ) -> Any:
        """The saved state in the structure and on the devices of `like`; raises, naming the leaf, where they
        do not fit.

        `what` and `otherwise` are for that error: what does not fit, and what to do if it is not meant to.

        A store of client state in `like` (`fedjax_core.client_state`) takes back any number of saved rows."""
        sizes = {leaf.name: leaf.shape for leaf in self.leaves}

        def room(path: Any, x: Any) -> Any:
            return x.shapes(sizes.get(_name(path) + "['who']", (0,))[0]) if isinstance(x, Savable) else x

        expected, structure = jax.tree_util.tree_flatten_with_path(
            jax.tree_util.tree_map_with_path(room, like)
        )
        saved, now = (
            {leaf.name: leaf.kind for leaf in self.leaves},
            {_name(path): _kind(x) for path, x in expected},
        )
        wrong = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
        if wrong or list(saved) != list(now):
            lines = [
                f"{name} is {saved.get(name, 'absent')} in {what} and {now.get(name, 'absent')} now"
                for name in wrong[:5]
            ]
            lines += [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
            problem = "; ".join(lines) or "another order of leaves"
            raise ValueError(
                f"{what} of round {self.round} does not fit the state of this run: {problem}. "
                f"Build the same model and algorithm, or {otherwise}."
            )
        placed = [
            _place(leaf, array, x)
            for leaf, array, (_, x) in zip(self.leaves, self.arrays, expected, strict=True)
        ]
        stored = jax.tree.unflatten(structure, placed)
        return jax.tree.map(
            lambda x, value: x.restored(jax.device_get(value)) if isinstance(x, Savable) else value,
            like,
            stored,
        )


def taken(state: Any) -> tuple[list[Leaf], list[np.ndarray]]:
    """(the leaves of a state, a copy of their arrays on the host), which stays as it is whatever becomes of
    the state."""
    leaves = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x: x.saved() if isinstance(x, Savable) else x, state)
    )
    data = jax.device_get([jax.random.key_data(x) if _is_key(x) else x for _, x in leaves])
    # a copy, for on CPU this may be the buffer itself, which the next round reuses
    arrays = [np.array(x) for x in data]
    keys = [str(jax.random.key_impl(x)) if _is_key(x) else None for _, x in leaves]
    return [
        Leaf(_name(path), str(x.dtype), x.shape, key)
        for (path, _), x, key in zip(leaves, arrays, keys, strict=True)
    ], arrays


def fingerprint(leaves: list[Leaf], arrays: list[np.ndarray]) -> str:
    """A digest that tells two states that were `taken` apart."""
    hashed = hashlib.sha256()
    for leaf, array in zip(leaves, arrays, strict=True):
        hashed.update(f"{leaf.name} {leaf.kind} {digest(array)}\n".encode())
    return hashed.hexdigest()[:16]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kind(x: Any) -> str:
    data = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
    dtype = data.dtype if hasattr(data, "dtype") else np.asarray(data).dtype
    return Leaf(
        "", str(dtype), tuple(np.shape(data)), str(jax.random.key_impl(x)) if _is_key(x) else None
    ).kind


def _place(leaf: Leaf, array: np.ndarray, like: Any) -> Any:
    if isinstance(like, (np.ndarray, np.generic)):
        return array
    value = jax.random.wrap_key_data(jnp.array(array), impl=leaf.key) if leaf.key else array
    if isinstance(like, jax.Array) and like.committed:
        return jax.device_put(value, like.sharding)
    return jnp.array(value)
