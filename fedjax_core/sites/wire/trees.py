"""Converts a pytree to named tensors, and named tensors to a structure that the reader already has.

    pytree  --named-->  {"['w']": array, ".bias[0]": array}  --place-->  pytree

A leaf is named by its path, as JAX writes it. The structure comes from the reader (`eval_shape` of the
report), never from the message. `tensors.py` packs the tensors into bytes.

>>> import numpy as np
>>> from fedjax_core.sites.wire.tensors import pack, unpack
>>> tree = {"w": np.ones((2, 3), np.float32), "steps": np.int32(7)}
>>> body = pack(to_tensors(tree))
>>> back = from_tensors(unpack(body), like=tree)
>>> back["w"].shape, back["steps"]
((2, 3), array(7, dtype=int32))
>>> from_tensors(unpack(body), like={"w": np.ones((2, 4), np.float32)})
Traceback (most recent call last):
fedjax_core.sites.wire.trees.WrongStructure: the tensors are not those of this round: unexpected "['steps']"...
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.sites.refusal import Refused, listed


class WrongStructure(Refused):
    """The tensors are not those that the reader expects."""

    code = "wrong-structure"


class WrongShape(Refused):
    """A tensor has another shape than the reader expects."""

    code = "wrong-shape"


class WrongDtype(Refused):
    """A tensor has another dtype than the reader expects."""

    code = "wrong-dtype"


class LeafSpec(NamedTuple):
    """The dtype and shape that a leaf's tensor must have."""

    dtype: str
    shape: tuple[int, ...]


def to_tensors(tree: Any) -> dict[str, np.ndarray]:
    """{path: leaf on the host}; raises if a leaf cannot be sent, or two have one name."""
    leaves, structure = jax.tree.flatten(tree)
    names = _names(structure)
    for name, leaf in zip(names, leaves, strict=True):
        if isinstance(leaf, jax.Array) and not isinstance(leaf.dtype, np.dtype):
            raise TypeError(
                f"{name} is a random key, which never travels: send jax.random.key_data of it, if it must"
            )
    tensors = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
    if len(tensors) != len(leaves):
        raise ValueError(
            "two leaves of the tree have one path, so their names say nothing: use dictionary keys that print differently"
        )
    return tensors


def leaf_specs(tree: Any) -> dict[str, LeafSpec]:
    """{name: (dtype, shape)} of the leaves, which may be `jax.ShapeDtypeStruct`s."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = (leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves)
    return {
        name: LeafSpec(_dtype_name(leaf.dtype), leaf.shape)
        for name, leaf in zip(_names(structure), arrays, strict=True)
    }


def from_tensors(tensors: Mapping[str, np.ndarray], like: Any) -> Any:
    """The tensors in the structure of `like` (arrays or `jax.ShapeDtypeStruct`s); raises a `Refused` if they
    do not fit."""
    return TreeSpec.of(like).filled(tensors)


def from_tensors_open(tensors: Mapping[str, np.ndarray], like: Any) -> Any:
    """The tensors in the structure of `like`, where a vector of length 0 stands for one of any length."""

    def one(path: Any, leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        given = tensors.get(jax.tree_util.keystr(path))
        return jax.ShapeDtypeStruct(
            given.shape if leaf.shape == (0,) and given is not None and given.ndim == 1 else leaf.shape,
            leaf.dtype,
        )

    return from_tensors(tensors, jax.tree_util.tree_map_with_path(one, like))


class TreeSpec(NamedTuple):
    """A structure for tensors, with their specs, prepared once for reading many messages of one kind."""

    structure: Any
    leaves: dict[str, LeafSpec]

    @classmethod
    def of(cls, like: Any) -> "TreeSpec":
        """The spec of a pytree, whose leaves may be `jax.ShapeDtypeStruct`s."""
        return cls(jax.tree.structure(like), leaf_specs(like))

    def filled(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """The tensors in this structure; raises a `Refused` if they do not fit."""
        check_specs(tensors, self.leaves)
        return jax.tree.unflatten(self.structure, [tensors[name] for name in self.leaves])


def check_specs(tensors: Mapping[str, np.ndarray], expected: Mapping[str, LeafSpec]) -> None:
    """Raises a `Refused`, with the difference, unless names, shapes and dtypes are as expected."""
    if tensors.keys() != expected.keys():
        missing, unexpected = (
            [n for n in expected if n not in tensors],
            [n for n in tensors if n not in expected],
        )
        differences = [
            f"{word} {listed(names)}"
            for word, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise WrongStructure(
            f"the tensors are not those of this round: {'; '.join(differences)}. Both ends need the same model, algorithm, uplink "
            "and version."
        )
    for name, (dtype, shape) in expected.items():
        if (has := tensors[name].shape) != shape:
            raise WrongShape(
                f"tensor {name or 'array'} has shape {list(has)} instead of {list(shape)}; both ends need the same model"
            )
        if (given := _dtype_name(tensors[name].dtype)) != dtype:
            raise WrongDtype(
                f"tensor {name or 'array'} is {given} instead of {dtype}; both ends need the same model and uplink"
            )


@lru_cache(maxsize=256)
def _names(structure: Any) -> list[str]:
    """The names of the leaves of a structure, in their order; cached, as it takes 5 to 10 us a leaf."""
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(numbered)]


@lru_cache(maxsize=256)
def _dtype_name(dtype: Any) -> str:
    return np.dtype(dtype).name
