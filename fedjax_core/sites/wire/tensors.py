"""Packs named tensors into bytes in the safetensors format, and unpacks them.

    {"['w']": array, ".bias[0]": array}  --pack-->  bytes  --unpack-->  {name: array}

Reading gives only bytes with a dtype and a shape, never code. `unpack` copies nothing: its arrays are
read-only views of the bytes. It checks everything, as the signer of the bytes may still be malicious.
`trees.py` maps tensors to pytrees.

>>> import numpy as np
>>> body = pack({"['w']": np.ones((2, 3), np.float32)})
>>> unpack(body)["['w']"].shape
(2, 3)
>>> unpack(body[:-1])
Traceback (most recent call last):
fedjax_core.sites.wire.tensors.BadTensors: tensor "['w']" does not lie where its shape and its neighbours say...
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import ml_dtypes
import msgspec
import numpy as np
from msgspec import Meta

from fedjax_core.sites.refusal import Refused, printable, shown
from fedjax_core.sites.wire.canonical import Bytes, loads_loosely

DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    **{
        f"{kind.upper()}{bits}": np.dtype(f"{name}{bits}")
        for kind, name in (("i", "int"), ("u", "uint"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype(np.complex64),
}
"""The dtypes that can be sent, by their names in the format."""
_CODES = {dtype: name for name, dtype in DTYPES.items()}

ALIGN = 64
"""The alignment in bytes from which XLA uses an array in place on a CPU: an unaligned one of 100 MB is
copied, in 40 to 50 ms."""
_LONG = 1 << 22  # bytes
_SMALL_INDEX = 64 << 10  # bytes: parsed indexes up to this size are cached

# Numbers widened to float64 at a time: they stay in the cache, and below the length from which BLAS starts
# threads. 25 M float32 then take 50 ms on a busy 2-core x86 machine, and 150 to 850 ms with 2^14 to 2^20.
_CHUNK = 1 << 13


class Oversize(Refused):
    """The message is larger than the reader allows."""

    code = "oversize"


class BadTensors(Refused):
    """The bytes are not tensors in the safetensors format."""

    code = "bad-tensors"


class PicklePayload(Refused):
    """The bytes are a pickle: reading one runs code of its sender's choice."""

    code = "pickle-payload"


class UnknownDtype(Refused):
    """A tensor has a dtype that cannot be sent."""

    code = "unknown-dtype"


class TooManyTensors(Refused):
    """There are more tensors than the reader allows."""

    code = "too-many-tensors"


class TrailingBytes(Refused):
    """There are bytes after the end, which nobody would read."""

    code = "trailing-bytes"


class NotFinite(Refused):
    """A tensor holds NaN or an infinity."""

    code = "not-finite"
    of_data = True


@dataclass(frozen=True)
class Limits:
    """The most that a reader accepts; checked before memory is allocated."""

    message_bytes: int = 2 << 30
    header_bytes: int = 64 << 10
    index_bytes: int = 4 << 20  # of the names, dtypes and shapes
    tensors: int = 10_000
    axes: int = 8
    name_characters: int = 512


LIMITS = Limits()


class _Place(msgspec.Struct, forbid_unknown_fields=True):
    """The index entry of a tensor, as in `safetensors`."""

    dtype: str
    shape: list[Annotated[int, Meta(ge=0, le=1 << 48)]]
    data_offsets: tuple[int, int]


_INDEX = msgspec.json.Decoder(dict[str, _Place])


def pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The tensors in the safetensors format: the same bytes for the same tensors. Raises TypeError for a
    dtype that cannot be sent."""
    return b"".join(pieces(tensors))


def pieces(tensors: Mapping[str, np.ndarray]) -> list[memoryview]:
    """The pieces that `pack` joins: the index, then each tensor's numbers in place, without a copy.

    The index is padded to a multiple of `ALIGN`, and tensors whose length is a multiple come first, so that
    most are aligned."""
    index, order = _layout(tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()))
    numbers = [
        np.ascontiguousarray(tensors[name], dtype).reshape(-1).view(np.uint8).data for name, dtype in order
    ]
    return [memoryview(index), *numbers]


@lru_cache(maxsize=32)
def _layout(
    tensors: tuple[tuple[str, np.dtype, tuple[int, ...]], ...],
) -> tuple[bytes, list[tuple[str, np.dtype]]]:
    """(the index of tensors with these names, dtypes and shapes, their order with the dtypes that are
    written)."""
    dtypes, shapes = {}, {}
    for name, dtype, shape in tensors:
        native = dtype if dtype.isnative else dtype.newbyteorder("=")
        if native not in _CODES:
            known = ", ".join(dtype.name for dtype in DTYPES.values())
            raise TypeError(f"tensor {name} is {dtype}, which does not travel; convert it to one of {known}")
        if problem := _bad_name(name, LIMITS):
            raise ValueError(problem)
        dtypes[name], shapes[name] = native, shape
    length = {name: math.prod(shapes[name]) * dtype.itemsize for name, dtype in dtypes.items()}
    order = sorted(dtypes, key=lambda name: (length[name] % ALIGN != 0, -dtypes[name].itemsize, name))
    index, end = {}, 0
    for name in order:
        begin, end = end, end + length[name]
        index[name] = _Place(_CODES[dtypes[name]], list(shapes[name]), (begin, end))
    text = msgspec.json.encode(index)
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text, [(name, dtypes[name].newbyteorder("<")) for name in order]


def joined(pieces: Sequence[Bytes]) -> Bytes:
    """The pieces joined, in an aligned buffer if they are long."""
    if (length := sum(map(len, pieces))) < _LONG:
        return b"".join(pieces)
    buffer, end = aligned_buffer(length), 0
    for piece in pieces:
        buffer[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
        end += len(piece)
    return buffer.data.toreadonly()


def aligned_buffer(length: int) -> np.ndarray:
    """[length] uint8, uninitialised and aligned to `ALIGN`.

    NumPy uses large pages for it if there are any: 100 MB are filled in 20 ms, and as `bytes` in 73 ms.
    """
    buffer = np.empty(length + ALIGN, np.uint8)
    begin = -buffer.ctypes.data % ALIGN
    return buffer[begin : begin + length]


def unpack(body: Bytes, limits: Limits = LIMITS) -> dict[str, np.ndarray]:
    """The tensors in these bytes, as read-only views; raises a `Refused` for any other format or size."""
    view = memoryview(body).cast("B").toreadonly()
    check_no_pickle(view)
    if len(view) > limits.message_bytes:
        raise Oversize(
            f"the tensors take {len(view):,} bytes, and at most {limits.message_bytes:,} are read; raise Limits.message_bytes"
        )
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or 8 + size > len(view):
        raise BadTensors(
            "the tensors are not in the safetensors format: their index does not fit into the bytes; they are damaged"
        )
    if size > limits.index_bytes:
        raise Oversize(
            f"the index of the tensors takes {size:,} bytes, and at most {limits.index_bytes:,} are read; raise Limits.index_bytes"
        )
    data = view[8 + size :]
    tensors, end = {}, 0
    for name, dtype, shape, begin, end in (_places if size <= _SMALL_INDEX else _places.__wrapped__)(
        bytes(view[8 : 8 + size]), limits
    ):
        if end > len(data):
            raise BadTensors(
                f"tensor {shown(name)} does not lie where its shape and its neighbours say; the index is damaged or forged"
            )
        tensors[name] = np.ndarray(shape, dtype, data, begin)
        if dtype == np.bool_ and np.any(tensors[name].view(np.uint8) > 1):
            raise BadTensors(
                f"tensor {shown(name)} is of truth values, but holds bytes that are neither; it is damaged"
            )
    if end != len(data):
        raise TrailingBytes(
            f"there are {len(data) - end:,} bytes after the last tensor, which nobody would read; send the tensors alone"
        )
    return tensors


def check_no_pickle(view: memoryview) -> None:
    """Raises if the bytes begin like a pickle or a zip archive, as torch and numpy save them."""
    start = bytes(view[:2])
    if (start[:1] == b"\x80" and start[1:] <= b"\x05" and bytes(view[-1:]) == b".") or start == b"PK":
        raise PicklePayload(
            "the bytes are a pickle or an archive, which is never opened here: it could run code. Send them with fedjax_core.sites"
        )


def _bad_name(name: str, limits: Limits) -> str | None:
    if len(name) > limits.name_characters or not name.isprintable():
        return f"tensor name {shown(name)} is not printable or longer than {limits.name_characters} characters; rename the leaf"
    return None


def _read_index(text: bytes) -> dict[str, _Place]:
    """Reads the index; spaces may follow, as the format allows, and other spellings are accepted without
    duplicate keys."""
    try:
        index = _INDEX.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        loads_loosely(text, "the index of the tensors", levels=3)
        raise BadTensors(
            f"the index of the tensors is not in order: {printable(str(error))[:200]}; they were not written by fedjax_core.sites"
        ) from None
    if msgspec.json.encode(index) != text.rstrip(b" "):
        loads_loosely(text, "the index of the tensors", levels=3)
    return index


@lru_cache(maxsize=64)
def _places(text: bytes, limits: Limits) -> list[tuple[str, np.dtype, tuple[int, ...], int, int]]:
    """(name, dtype, shape, begin, end) of each tensor in an index, in their order in memory; cached."""
    index = _read_index(text)
    if len(index) > limits.tensors:
        raise TooManyTensors(
            f"there are {len(index):,} tensors, and at most {limits.tensors:,} are read; raise Limits.tensors"
        )
    places, end = [], 0
    for name, place in sorted(index.items(), key=_offsets):
        dtype, shape = _read_place(name, place, end, limits)
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if place.data_offsets != (begin, end):
            raise BadTensors(
                f"tensor {shown(name)} does not lie where its shape and its neighbours say; the index is damaged or forged"
            )
        places.append((name, dtype, shape, begin, end))
    return places


def _offsets(item: tuple[str, _Place]) -> tuple[int, int]:
    return item[1].data_offsets


def _read_place(name: str, place: _Place, begin: int, limits: Limits) -> tuple[np.dtype, tuple[int, ...]]:
    if problem := _bad_name(name, limits):
        raise BadTensors(problem)
    if (dtype := DTYPES.get(place.dtype)) is None:
        raise UnknownDtype(
            f"tensor {shown(name)} is {shown(place.dtype)}, which does not travel; convert it to one of {', '.join(DTYPES)}"
        )
    shape = place.shape
    if len(shape) > limits.axes or max(shape, default=0) > limits.message_bytes:
        raise BadTensors(
            f"tensor {shown(name)} has no shape of at most {limits.axes} axes of ordinary length; it is damaged or forged"
        )
    if math.prod(shape) * dtype.itemsize > limits.message_bytes - begin:
        raise Oversize(
            f"tensor {shown(name)} would end past the {limits.message_bytes:,} bytes that are read; raise Limits.message_bytes"
        )
    return dtype, tuple(shape)


def measure_update(tensors: Mapping[str, np.ndarray], beside: Collection[str]) -> float:
    """The l2 norm of the tensors except those `beside` the update; raises `NotFinite` for NaN or infinity."""
    if not beside:
        return measure(tensors)
    measure({name: tensors[name] for name in beside})
    return measure({name: tensor for name, tensor in tensors.items() if name not in beside})


def measure(tensors: Mapping[str, np.ndarray]) -> float:
    """The l2 norm of all numbers, summed in float64; raises `NotFinite` with the tensor's name."""
    total = 0.0
    for name, tensor in tensors.items():
        if tensor.dtype == np.bool_:
            continue
        flat = tensor.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            wide = (
                part.view(np.float32).astype(np.float64)
                if part.dtype.kind == "c"
                else part.astype(np.float64)
            )
            square = float(np.vdot(wide, wide))  # unlike @, without a warning on overflow
            # Finite numbers may have an infinite square.
            if not math.isfinite(square) and not np.isfinite(wide).all():
                raise NotFinite(
                    f"tensor {name or 'array'} holds NaN or an infinity; look at the site's loss, and train with a smaller step"
                )
            total += square
    return math.sqrt(total)
