"""BatchNorm in a federated task: its statistics are those of a batch's own examples, never of padding.

    mean, var        <- over the rows of the batch that are no padding
    running mean     <- momentum * running mean + (1 - momentum) * mean          the same for the variance

The last batch of a client is filled up with copies of its examples, which would count twice. So while a linen
module is applied, each `nn.BatchNorm` in it without a mask gets the batch's.

>>> import jax, jax.numpy as jnp
>>> norm, x = linen.BatchNorm(use_running_average=False), jnp.array([[1.0], [3.0], [3.0]])
>>> variables = norm.init(jax.random.key(0), x)
>>> with masked(jnp.array([1.0, 1.0, 0.0])):
...     _, after = norm.apply(variables, x, mutable=["batch_stats"])
>>> round(float(after["batch_stats"]["mean"][0]), 4)  # 0.01 of the mean of two
0.02
"""

from contextlib import AbstractContextManager
from typing import Any

import jax.numpy as jnp
from flax import linen

from fedjax_core.types import Array

STATISTICS = "batch_stats"
"""The collection of a linen module that holds the running statistics."""


def masked(mask: Array) -> AbstractContextManager[None]:
    """A context in which BatchNorm of linen modules uses the rows with `mask` [B] above 0, or all rows if
    there are none."""
    here = (mask > 0) | ~jnp.any(mask > 0)  # an idle lane does not count, but must be finite

    def with_mask(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if (
            isinstance(context.module, linen.BatchNorm)
            and context.method_name == "__call__"
            and kwargs.get("mask") is None
        ):
            x = args[0] if args else kwargs["x"]
            if x.shape[:1] != here.shape:
                raise ValueError(
                    f"BatchNorm is given {x.shape[0]} rows of a batch of {len(here)}, so which of them are padding is not known: "
                    "call it on arrays whose first axis is the example, or give it mask= yourself"
                )
            kwargs = {**kwargs, "mask": here.reshape(-1, *[1] * (x.ndim - 1))}
        return call(*args, **kwargs)

    return linen.intercept_methods(with_mask)
