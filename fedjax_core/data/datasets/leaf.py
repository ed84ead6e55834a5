"""Files as LEAF's scripts write them: `train/*.json` and `test/*.json`, each with users and their examples.

    {"users": ["f0", ...], "num_samples": [12, ...], "user_data": {"f0": {"x": [...], "y": [...]}, ...}}

The scripts draw users and examples themselves, so no checksum is published for what they write:
`fedjax_core.data.fingerprint` tells two such sets apart. Caldas et al., "LEAF: A Benchmark for Federated
Settings", 2018.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.datasets import text
from fedjax_core.data.datasets.base import DataError
from fedjax_core.data.datasets.tff import Federated


def leaf(folder: str | Path, kind: Literal["femnist", "shakespeare"]) -> Federated:
    """The clients below `folder`, which has `train` and `test` in it.

    femnist: x uint8 [n, 28, 28, 1], ink 255 on 0, and y int32 [n]. shakespeare: x and y int32 [n, 80], y one
    character ahead (`datasets.text`). Raises DataError where files lack, or do not hold what they say.
    """
    if kind not in _COLUMNS:
        raise ValueError(f"kind must be one of {', '.join(_COLUMNS)}, got {kind!r}")
    return Federated(*(_split(Path(folder) / split, kind) for split in ("train", "test")))


def _split(folder: Path, kind: str) -> Clients:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder} has no .json files in it: LEAF's preprocess.sh writes them there")
    users: dict[str, dict[str, np.ndarray]] = {}
    for file in files:
        content = json.loads(file.read_text())
        for user, examples in zip(content["users"], content["num_samples"], strict=True):
            of = content["user_data"][user]
            if user in users:
                raise DataError(f"{file} has user {user!r}, who is in another file of {folder}, too")
            if not len(of["x"]) == len(of["y"]) == examples:
                raise DataError(
                    f"{file} says that user {user!r} has {examples} examples: there are {len(of['x'])} of x, {len(of['y'])} of y"
                )
            users[user] = _COLUMNS[kind](of)
    return Clients.from_list(list(users.values()), ids=list(users))


def _femnist(of: dict[str, Any]) -> dict[str, np.ndarray]:
    pixels = np.array(of["x"], np.float64).reshape(-1, 28, 28, 1)
    return {"x": np.rint(255 * (1 - pixels)).astype(np.uint8), "y": np.array(of["y"], np.int32)}


def _shakespeare(of: dict[str, Any]) -> dict[str, np.ndarray]:
    both = np.stack([text.tokens(x + y) for x, y in zip(of["x"], of["y"], strict=True)])
    return {"x": both[:, :-1], "y": both[:, 1:]}


_COLUMNS = {"femnist": _femnist, "shakespeare": _shakespeare}
