"""Secure aggregation on the wire: the messages of `fedjax_core.secure_aggregation` in envelopes, and a report
as one vector.

    request    carries                               the site's answer
    train      the model, as in any round            the keys of this attempt, after training; nothing learned
    share      everybody's keys                      a box for each peer, with a share of the site's secrets
    mask       the boxes for this site               its report and its weight under masks
    confirm    who is in the sum                     its signature over that
    reveal     all signatures, and whose shares      those shares

An attempt is named by the number of its request to train, which the later requests carry (`ATTEMPT`). A
message is MessagePack, read into the one type that is expected there.

>>> import jax
>>> from fedjax_core.secure_aggregation.ring import Weighted
>>> report = Weighted({"b": np.zeros(2, np.uint32), "w": np.ones((2, 2), np.uint32)}, np.uint32(7))
>>> vector_of(report).tolist()
[0, 0, 1, 1, 1, 1, 7]
>>> ring_of(vector_of(report), report).update["w"].shape
(2, 2)
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import msgspec
import numpy as np

from fedjax_core.secure_aggregation.messages import Round, Terms
from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.sites.wire.envelope import Header

ATTEMPT = "attempt"
"""The field of a request that names its attempt, by the number of the request to train."""

MESSAGE, IDENTITIES, VECTOR = "message", "identities", "vector"
"""The names of the tensors: a message; [n, 32] the identity keys of the sites in the roster, in its order;
the masked report."""

CANNOT_SEE = "the coordinator reads the sum of the reports, and cannot see any one report or its weight"
"""The sentence about a sum in the audit logs of both ends."""

T = TypeVar("T")


def terms_of(request: Header, length: int) -> Terms:
    """The terms of the attempt that a request to train begins, for vectors of this length."""
    return Terms(Round(request.run, request.round, request.exchange, request.sequence), length)


def written(message: msgspec.Struct) -> dict[str, np.ndarray]:
    """The message as a tensor."""
    return {MESSAGE: np.frombuffer(msgspec.msgpack.encode(message), np.uint8)}


def read(tensors: Mapping[str, np.ndarray], kind: type[T]) -> T:
    """The message of this kind in the tensors; raises `BadRequest` if there is none."""
    raw = tensors.get(f"['{MESSAGE}']")
    if raw is None or raw.dtype != np.uint8 or raw.ndim != 1:
        raise BadRequest(f"there is no message {kind.__name__} of secure aggregation")
    try:
        return msgspec.msgpack.decode(raw.tobytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadRequest(f"what should be a message {kind.__name__} of secure aggregation is none") from None


def length_of(ring: Any) -> int:
    """The number of integers of a report in the ring, weight included; its leaves may be shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(ring))


def vector_of(ring: Any) -> np.ndarray:
    """[length] uint32: a report in the ring, leaf by leaf; the weight is the last number."""
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(ring)])


def ring_of(vector: np.ndarray, like: Any) -> Any:
    """The vector in the structure and shapes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])[:-1]
    parts = np.split(vector, ends)
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )
