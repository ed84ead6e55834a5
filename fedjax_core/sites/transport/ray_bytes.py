"""Reads an actor's result as bytes only: `ray.get` would unpickle it, which runs its writer's code.

Ray keeps `bytes` as they are, with metadata that say so (`RAW`), and everything else as a pickle. A site's
worker is code on the site's machine, so its result is judged by the metadata alone: `RAW` is read in place,
and everything else is refused unread. A worker's exceptions are pickles too, and Ray unpickles even those
that nobody asked for, to print them: hence `leave_errors_unread`."""

from typing import Any

from ray._private import worker as ray_worker
from ray._private.ray_constants import OBJECT_METADATA_TYPE_RAW
from ray.core.generated.common_pb2 import ErrorType  # type: ignore[attr-defined]

from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.canonical import Bytes

_worker: Any = ray_worker.global_worker  # this process's Ray worker


class NotBytes(Refused):
    """A site returned a Python object, which is not read: it might run code."""

    code = "not-bytes"


class NoReply(Exception):
    """There is no reply: the actor, its worker or its node died, or its method raised."""


def bytes_of(ref: Any, seconds: float | None = None) -> Bytes:
    """The bytes that an actor's method returned, in place.

    Raises `NoReply` or `NotBytes` if it returned none, and Ray's `GetTimeoutError` after `seconds` (None: no
    limit)."""
    ((data, metadata, *_),) = _worker.core_worker.get_objects(
        [ref], -1 if seconds is None else int(seconds * 1000)
    )
    if metadata == OBJECT_METADATA_TYPE_RAW:
        return b"" if data is None else memoryview(data).toreadonly()
    kind = bytes(metadata or b"").partition(b",")[0]
    if kind.isdigit() and int(kind) in ErrorType.values():
        raise NoReply(f"Ray says {ErrorType.Name(int(kind))}; logs of the site's node say more")
    raise NotBytes(
        "the site's process returned an object where bytes are due; it was not read: another program answers there"
    )


def leave_errors_unread() -> None:
    """Makes Ray drop actors' errors that nobody asks for: it would unpickle each to print it, whatever its
    text holds."""
    _worker.raise_errors = lambda *unread: None
