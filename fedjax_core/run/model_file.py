"""A model in a file for other programs: safetensors, with the leaves under their names in the tree.

    {"Dense_0": {"kernel": x, "bias": y}}    "Dense_0.kernel", "Dense_0.bias"
    [{"w": x}, {"w": y}]                     "0.w", "1.w"

Any library for safetensors reads it; `load_model` gives the tree back. What a run needs to go on, such as the
state of clients and server, is in its checkpoints.

>>> import tempfile, jax.numpy as jnp
>>> folder = tempfile.TemporaryDirectory()
>>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
>>> path = save_model(f"{folder.name}/model.safetensors", params)
>>> load_model(path, like=params)["w"].shape
(2, 3)
>>> load_model(path, like={"w": jnp.ones((2, 4)), "b": jnp.zeros(3)})
Traceback (most recent call last):
ValueError: ...model.safetensors does not hold such a model: w is float32[2, 3] there and float32[2, 4] in like=. ...
>>> folder.cleanup()
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fedjax_core.files import write_whole
from fedjax_core.types import Params


def save_model(
    path: str | os.PathLike[str], params: Params, *, about: Mapping[str, str] | None = None
) -> Path:
    """Writes the model to a file, whole or not at all, and returns its path; creates the folders above it.

    `about` is text to store with it, such as {"task": "sepsis"}. None in the place of a leaf, as where others
    are trained, is left out. Raises ValueError where two leaves would have one name.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, x in _named(params):
        if name in tensors:
            raise ValueError(
                f"two leaves of the model would be {name!r} in the file: rename a key that has a dot in it"
            )
        tensors[name] = np.ascontiguousarray(x).reshape(x.shape)  # scalars had become [1]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.numpy.save(tensors, dict(about or {})), private=False)
    return path


def load_model(path: str | os.PathLike[str], like: Params) -> Params:
    """The model in a file, as a tree like `like`: one of the same task, such as `task.init(key)`, or only its
    shapes.

    Raises ValueError where the file is no safetensors, or has not exactly those names, shapes and dtypes.
    """
    try:
        read = dict(safetensors.deserialize(Path(path).read_bytes()))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a file in the safetensors format: {error}") from error
    there = {name: f"{_DTYPES.get(x['dtype'], x['dtype'])}{list(x['shape'])}" for name, x in read.items()}
    wanted = {name: f"{x.dtype}{list(x.shape)}" for name, x in _named(like)}
    if wrong := [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]:
        lines = [
            f"{name} is {there.get(name, 'absent')} there and {wanted.get(name, 'absent')} in like="
            for name in wrong[:5]
        ]
        lines += [f"and {len(wrong) - 5} more" for _ in wrong[5:6]]
        raise ValueError(
            f"{path} does not hold such a model: {'; '.join(lines)}. Give like= of the task that it was trained for"
        )
    leaves = [
        jnp.array(np.frombuffer(read[name]["data"], x.dtype).reshape(x.shape)) for name, x in _named(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


_SIZES = {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}
_DTYPES = {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind, sizes in _SIZES.items() for bits in sizes}
_DTYPES |= {"BOOL": "bool", "BF16": "bfloat16", "C64": "complex64"}
"""{a dtype in the format: its name in NumPy}."""


def _named(params: Params) -> list[tuple[str, Any]]:
    """[(name, array or shape)] of each leaf, its dtype with it; a model that is one array is `params`."""
    leaves = [
        (path, x if hasattr(x, "dtype") else np.asarray(x))
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    return [(jax.tree_util.keystr(path, simple=True, separator=".") or "params", x) for path, x in leaves]
