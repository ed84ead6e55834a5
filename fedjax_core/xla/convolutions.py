"""The forms of one convolution: several ways to compute the same sums, each the fastest somewhere.

    plain       as it is
    ordered     axes first brought to the one order for which XLA has a fast convolution on CPU: examples, space, channels
    whole       patches, the inputs under the kernel at each place, side by side, times a matrix
    rows        a product for each row of the kernel, with patches of that row alone: a third of the memory, where it has three

Measured in a loop on a 2-core x86, kernel 3x3x32x64 and 20 images of 26x26, ms (with the options of
`options`):

    one lane                   plain    ordered    whole    rows
    forward                    1.1      1.1        2.4      1.4        (2.4 where XLA may take a library's convolution)
    gradient of the input      20       1.5        12       8.4
    gradient of the kernel     361      1.7        2.6      3.1

Lanes have a kernel each, and one convolution for all would be a grouped one, which is slow. Instead they take
turns ("lane by lane"), or one product serves all. Which is faster depends: a network of two convolutions, 10
images of 28x28, ms a step and lane in 16 lanes:

    channels                   ordered, lane by lane    whole    in one lane, ordered
    4, 8                       0.75                     0.6      0.9
    16, 32                     1.0                      1.9      1.7
"""

import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from fedjax_core.types import Array

WORTH_MEASURING = 2e6  # multiplications over all lanes: about 0.1 ms on a 2-core x86
_MOST_PLACES = 32  # places of a kernel, or of an output, that are written out one by one
_APART = ", lane by lane"


class Convolution(NamedTuple):
    """An equation `conv_general_dilated` as a value: `y[p] = sum_t x[(p * stride + t * kernel_dilation - low)
    / dilation] k[t]`."""

    x: tuple[int, ...]
    k: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    # the axes of x, k and y: (examples, channels, *space), (outputs, inputs, *space), (examples, outputs,
    # *space)
    axes: Any
    groups: tuple[int, int]
    precision: Any
    preferred: Any

    @classmethod
    def of(cls, eqn: core.JaxprEqn) -> "Convolution":
        """The convolution of an equation."""
        x: Any
        k: Any
        (x, k), p = (v.aval for v in eqn.invars), eqn.params
        axes = tuple(tuple(axis) for axis in p["dimension_numbers"])
        geometry = (
            tuple(p["window_strides"]),
            tuple(map(tuple, p["padding"])),
            tuple(p["lhs_dilation"]),
            tuple(p["rhs_dilation"]),
        )
        groups = (p["feature_group_count"], p["batch_group_count"])
        return cls(
            x.shape,
            k.shape,
            str(x.dtype),
            *geometry,
            axes,
            groups,
            p["precision"],
            p["preferred_element_type"],
        )

    @property
    def places(self) -> list[tuple[int, ...]]:
        """The kernel's places."""
        return list(itertools.product(*(range(self.k[a]) for a in self.axes[1][2:])))

    @property
    def extent(self) -> list[int]:
        """The output's size in space."""
        return [
            (lo + hi + (self.x[a] - 1) * d - (self.k[b] - 1) * kd) // s + 1
            for a, b, s, (lo, hi), d, kd in zip(
                self.axes[0][2:],
                self.axes[1][2:],
                self.stride,
                self.padding,
                self.dilation,
                self.kernel_dilation,
                strict=True,
            )
        ]

    @property
    def multiplications(self) -> int:
        """The number of multiplications for one lane, without zeros between the input's numbers."""
        within = math.prod(self.k) * self.x[self.axes[0][0]] // self.groups[1]
        return within * math.prod(self.extent) // math.prod(self.dilation)

    def rules(self, lanes: int) -> list[str]:
        """The rules that apply; the first is the usual one, taken where nothing is measured."""
        products = ["rows"] if self.to_kernel and lanes == 1 else ["whole", "rows"]
        if math.prod(self.extent[:-1] if self.to_kernel else [self.k[a] for a in self.axes[1][2:-1]]) == 1:
            products = ["whole"]  # the same as "rows" for one row
        if self.groups != (1, 1) or not 0 < min(math.prod(self.extent), len(self.places)) <= _MOST_PLACES:
            products = []
        if jax.default_backend() != "cpu":  # any order of axes is fast there; not measured so far
            return ["plain"] if lanes == 1 else [*products[:1], "plain"]
        if lanes == 1:
            return ["ordered", *products]
        apart = ["ordered" + _APART, *(rule + _APART for rule in products if rule == "rows")]
        # A small convolution is all overhead, which one product for all lanes has only once.
        small = self.multiplications * lanes < WORTH_MEASURING
        return [*products[:1], *apart] if small else [*apart, *products[:1]]

    @property
    def to_kernel(self) -> bool:
        """Whether the output is the smaller side, as in the gradient of a kernel."""
        return math.prod(self.extent) < len(self.places)

    def by(self, rule: str, x: Array, k: Array) -> Array:
        """The convolution of x and k by this rule."""
        if rule.endswith(_APART):
            return jax.custom_batching.sequential_vmap(partial(self.by, rule.removesuffix(_APART)))(x, k)
        if rule in ("rows", "whole"):
            return (self._positions if self.to_kernel else self._patches)(
                x, k, 1 if rule == "rows" else len(self.stride)
            )
        return {"plain": self._plain, "ordered": self._ordered}[rule](x, k)

    def _plain(self, x: Array, k: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            k,
            self.stride,
            self.padding,
            self.dilation,
            self.kernel_dilation,
            lax.ConvDimensionNumbers(*self.axes),
            *self.groups,
            precision=self.precision,
            preferred_element_type=self.preferred,
        )

    def _ordered(self, x: Array, k: Array) -> Array:
        (n, c, *space), (o, i, *places), _ = self.axes
        x, k, last = lax.transpose(x, (n, *space, c)), lax.transpose(k, (*places, i, o)), len(space) + 1
        order = (0, last, *range(1, last))
        ordered = self._replace(axes=(order, (last, last - 1, *range(last - 1)), order))
        if min(map(min, self.padding), default=0) < 0:  # XLA on CPU reads beyond the input there (jax 0.10.2)
            x = self._padded(x, list(range(1, last)))
            ordered = ordered._replace(padding=((0, 0),) * len(space), dilation=(1,) * len(space))
        return self._output(ordered._plain(x, k))

    def _patches(self, x: Array, k: Array, beside: int) -> Array:
        (n, c, *space), (o, i, *places), _ = self.axes
        cut = len(space) - beside
        x = self._padded(lax.transpose(x, (n, *space, c)), [1 + a for a in range(len(space))])
        k = lax.transpose(k, (*places, i, o))
        seen = jnp.concatenate(
            [self._window(x, last, cut) for last in itertools.product(*map(range, k.shape[cut:-2]))], axis=-1
        )
        seen = lax.optimization_barrier(seen) if cut else seen  # made once, not for every row
        y: Any = 0
        for first in itertools.product(*map(range, k.shape[:cut])):
            y = y + self._product(
                self._window(seen, first, 0), k[first].reshape(-1, k.shape[-1]), (x.ndim - 1,), (0,)
            )
        return self._output(y)

    def _positions(self, x: Array, k: Array, beside: int) -> Array:
        (n, c, *space), (_, i, *places), _ = self.axes
        x, cut = self._padded(x, space), len(space) - beside
        seen = jnp.concatenate(
            [self._seen(x, last, cut) for last in itertools.product(*map(range, self.extent[cut:]))], axis=n
        )
        seen = lax.optimization_barrier(seen) if cut else seen  # made once, not for every row
        firsts = itertools.product(*map(range, self.extent[:cut]))
        parts = [self._product(self._seen(seen, first, 0), k, (c, *space), (i, *places)) for first in firsts]
        y = jnp.stack(parts).reshape(*self.extent, self.x[n], -1)
        return self._output(jnp.moveaxis(y, -2, 0))

    def _product(self, x: Array, k: Array, over_x: tuple[int, ...], over_k: tuple[int, ...]) -> Array:
        dims = ((over_x, over_k), ((), ()))
        return lax.dot_general(x, k, dims, precision=self.precision, preferred_element_type=self.preferred)

    def _output(self, y: Array) -> Array:
        """[examples, *space, outputs] in the equation's order of axes."""
        axes = self.axes[2]
        now = dict(zip(axes, (0, y.ndim - 1, *range(1, y.ndim - 1)), strict=True))
        return lax.transpose(y, tuple(now[a] for a in range(y.ndim)))

    def _padded(self, x: Array, space: list[int]) -> Array:
        """x with padding and dilation applied; `space` are its axes in space."""
        pads = {a: (*pad, d - 1) for a, pad, d in zip(space, self.padding, self.dilation, strict=True)}
        return lax.pad(x, jnp.zeros((), x.dtype), [pads.get(a, (0, 0, 0)) for a in range(x.ndim)])

    def _window(self, x: Array, place: tuple[int, ...], first: int) -> Array:
        """The part of x, [examples, *space, channels], under one place of the kernel, along the axes in space
        from `first` on."""
        index = [slice(None)] * x.ndim
        for a, t in enumerate(place, first):
            begin, wide, s = t * self.kernel_dilation[a], self.extent[a], self.stride[a]
            index[1 + a] = slice(begin, begin + (wide - 1) * s + 1, s)
        return x[tuple(index)]

    def _seen(self, x: Array, corner: tuple[int, ...], first: int) -> Array:
        """The part of x under the whole kernel at one place of the output, along the axes in space from
        `first` on."""
        index = [slice(None)] * x.ndim
        for a, p in enumerate(corner, first):
            begin, wide, kd = p * self.stride[a], self.k[self.axes[1][2 + a]], self.kernel_dilation[a]
            index[self.axes[0][2 + a]] = slice(begin, begin + (wide - 1) * kd + 1, kd)
        return x[tuple(index)]
