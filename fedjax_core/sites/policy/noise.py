"""The site's own Gaussian mechanism: clips an update and adds noise before it leaves.

    x = u min(1, C / |u|)                                     the l2 norm over all tensors of the update
    sent = g (truncate(x / g) + round(N(0, (z C)^2) / g))     g: a power of two, about z C / 2^17

Both terms are whole multiples of g, and truncating only shortens x. So the last bits of what leaves disclose
nothing of x, as those of a sum of floating-point numbers may: Mironov, "On Significance of the Least
Significant Bits for Differential Privacy", CCS 2012. The noise is rounded from 53-bit draws, whose tails end
at 8.2 standard deviations.

The draws come from SHAKE-256 under a secret of the site, which the operating system gave when the site's key
was made. They are addressed by the request and by the update itself: the same update in answer to the same
request leaves with the same bits, also after a crash, and no two updates leave under one noise.

>>> update = {"w": np.array([3.0, 4.0], np.float32)}
>>> protected(update, clip=1.0)["w"].round(3).tolist()
[0.6000000238418579, 0.800000011920929]
>>> first, again, other = (protected(update, clip=1.0, noise=2.0, secret=b"s", place=place)["w"] for place in ("r/0", "r/0", "r/1"))
>>> bool((first == again).all()), bool((first == other).any())
(True, False)
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from scipy.special import ndtri

from fedjax_core.sites.wire.tensors import measure

_CHUNK = 1 << 18  # numbers at a time: 2 MB of draws


def protected(
    update: Mapping[str, np.ndarray], clip: float, noise: float = 0.0, secret: bytes = b"", place: str = ""
) -> dict[str, np.ndarray]:
    """The tensors with a joint l2 norm of at most `clip`, plus N(0, (noise clip)^2) in each number.

    `secret` and `place` address the draws. Raises `NotFinite` for NaN or infinity, and ValueError for a
    tensor that is not of floating point."""
    odd = [name for name, x in update.items() if not floating(x.dtype)]
    if odd:
        raise ValueError(
            f"tensor {odd[0]!r} is of {update[odd[0]].dtype}, to which no noise can be added: only floating point leaves here"
        )
    norm = measure(update)
    shrink = clip / norm * (1 - 1e-12) if norm > clip else 1.0
    if not noise:
        return {name: _shortened(x, shrink) if shrink < 1 else x for name, x in update.items()}
    address = hashlib.blake2b(f"{place}/{clip!r}/{noise!r}".encode(), key=secret[:64])
    for name, x in sorted(update.items()):
        address.update(f"/{name}/{x.dtype}/{x.shape}/".encode())
        address.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    seed = address.digest()
    return {name: _noisy(x, shrink, noise * clip, seed + name.encode()) for name, x in update.items()}


def floating(dtype: np.dtype) -> bool:
    """Whether numbers of this dtype can take noise: floating point, including bfloat16."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _shortened(x: np.ndarray, shrink: float) -> np.ndarray:
    """The array times `shrink`, reduced by what rounding to the dtype could add."""
    unit = 2.0**-8 if x.dtype.itemsize < 4 else float(np.finfo(x.dtype).eps)
    return np.asarray(x.astype(np.float64) * (shrink * (1 - unit)), x.dtype)


def _noisy(x: np.ndarray, shrink: float, deviation: float, seed: bytes) -> np.ndarray:
    step = 2.0 ** (math.frexp(deviation)[1] - 17)
    flat, sent = x.reshape(-1), np.empty(x.size, x.dtype)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        whole = np.trunc(part * (shrink / step)) + np.rint(
            _normal(seed, start, part.size) * (deviation / step)
        )
        sent[start : start + _CHUNK] = (whole * step).astype(x.dtype)
    return sent.reshape(x.shape)


def _normal(seed: bytes, start: int, count: int) -> np.ndarray:
    """[count] draws of N(0, 1) that nobody without the seed can predict."""
    words = np.frombuffer(hashlib.shake_256(seed + start.to_bytes(8, "little")).digest(8 * count), "<u8")
    return np.asarray(ndtri(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53))
