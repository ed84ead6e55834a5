"""Normal noise for differential privacy: threefry2x32 in counter mode and the Box-Muller transform.

    a, b = threefry2x32(key, (row, column))                 20 rounds, for each number by itself
    z    = sqrt(-2 log u(a)) cos(2 pi u(b))                 u: a word as a number in (0, 1]

All normal noise of `fc.privacy` is drawn here, in lanes and at real sites alike: equal keys give equal noise on every
backend. The cipher is that of `jax.random` (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC
2011), with all its rounds, so noise is as hard to tell as that of `jax.random.normal` by the same key. A
generator that is no cipher (Philox, XLA's) would serve a simulation, but not a real site, whose key is secret;
and XLA's gives other numbers in several lanes than in one.

Drawn by `jax.random.normal`, a number takes 6.5 ns on one core of an AMD EPYC, and here 3.3: each number is an
element of one fused loop, which XLA computes in vector registers, and all 32 bits of a word are used. The
largest number is 6.8 standard deviations, where `jax.random.normal` ends at 5.4. A row's number starts at 1, so
that no counter is one of `jax.random.fold_in`, which has 0 there.

>>> import jax
>>> [z.shape for z in normals(jax.random.key(0), [(2, 3), (4,)])]
[(2, 3), (4,)]
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_core.types import Array, Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_COLUMNS = 512, 4096  # a row has at least so many numbers where it can, and at most so many

# Coefficients of the Cephes library (S. Moshier): log(1 + x) for 1 + x in [sqrt(1/2), sqrt(2)], sine and
# cosine in [-pi/4, pi/4]. Their relative error is below 2e-7.
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def normals(key: Key, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Independent N(0, 1) draws in float32, an array for each shape."""
    words, first, drawn = _words(key), 1, []
    for shape in shapes:
        rows, columns = _layout(shape)
        # Small constants, one of rows and one of columns: an iota within the loop keeps XLA on CPU from
        # computing it in vector registers, which takes ten times as long.
        row = np.arange(first, first + rows, dtype=np.uint32)[:, None]
        column = np.arange(columns, dtype=np.uint32)[None, :]
        counter = [jnp.broadcast_to(jnp.asarray(x), (rows, columns)) for x in (row, column)]
        numbers = box_muller(*threefry2x32(words[0], words[1], *counter))
        size = math.prod(shape)
        drawn.append((numbers if rows * columns == size else numbers.reshape(-1)[:size]).reshape(shape))
        first += rows
    return drawn


def _words(key: Key) -> Array:
    """The two words of a threefry key; of another generator's key, two words that it draws."""
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return jax.random.key_data(key)
    return jax.random.bits(key, (2,), jnp.uint32)


def _layout(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) in which an array is drawn: columns are its last axes, until they are enough; a long
    vector is cut into rows, the last of which may be longer than what is left."""
    columns, axes = 1, list(shape)
    while axes and columns < _COLUMNS[0] and columns * axes[-1] <= _COLUMNS[1]:
        columns *= axes.pop()
    rows = math.prod(axes)
    if columns == 1 and rows > _COLUMNS[1]:
        return -(-rows // _COLUMNS[0]), _COLUMNS[0]
    return (rows, columns) if columns > 1 else (columns, rows)


def threefry2x32(key0: Array, key1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Two words of 20 rounds of Threefish with 32-bit words, as in the Random123 library and in
    `jax.random`."""
    schedule = (key0, key1, key0 ^ key1 ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return x0, x1


def box_muller(a: Array, b: Array) -> Array:
    """N(0, 1) of two words of independent uniform bits: the radius of the first, the angle of the second."""
    uniform = (a.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)  # in (0, 1], and never 0
    radius = jnp.sqrt(jnp.maximum(-2 * _log(uniform), 0))
    # The highest two bits choose a quarter of the circle, the others a place in it, up to 45 degrees either way.
    place = lax.bitcast_convert_type(b << jnp.uint32(2), jnp.int32).astype(jnp.float32)
    angle = place * jnp.float32(math.pi / 4 * 2.0**-31)
    square = angle * angle
    sine = _polynomial(_SIN, square) * square * angle + angle
    cosine = _polynomial(_COS, square) * square * square - 0.5 * square + 1
    turned = jnp.where((b >> jnp.uint32(30)) & jnp.uint32(1) == 1, sine, cosine)
    return radius * jnp.where(b >> jnp.uint32(31) == 1, -turned, turned)


def _log(x: Array) -> Array:
    """log(x) of normal float32 numbers above 0."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # so that the rest is between sqrt(1/2) and sqrt(2)
    rest = lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1
    square = rest * rest
    curved = _polynomial(_LOG, rest) * rest * square - 0.5 * square
    return rest + curved + exponent.astype(jnp.float32) * jnp.float32(math.log(2))


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """A polynomial by Horner's rule, the highest power first."""
    value = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + jnp.float32(c)
    return value
