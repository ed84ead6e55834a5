"""The types that every part shares: names for pytrees, and the `Batch` that a client trains on.

Letters mean the same everywhere: `N` clients in the population, `K` in a cohort, `L` lanes, `S` slots, `B`
examples in a batch, `R` rounds, `P` parameters. The client-like axis comes first.

>>> import jax.numpy as jnp
>>> batch = Batch({"x": jnp.ones((4, 2))}, mask=jnp.array([1.0, 1.0, 1.0, 0.0]))
>>> batch["x"].shape, float(batch.mask.sum())
((4, 2), 3.0)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

Array = jax.Array
Key = jax.Array  # a typed key, as from jax.random.key

Params = Any  # pytree of arrays: the model
Server = Any  # pytree with a field `params`: what the server keeps between rounds
Message = Any  # pytree: what the server broadcasts in one exchange
Own = Any  # pytree: what a client keeps between rounds
Carry = Any  # pytree: what a client carries from one local step to the next
Update = Any  # pytree: what a client reports; it need not have the shape of the parameters
Columns = Any  # pytree of arrays whose first axis is the example


def known(*numbers: Any) -> bool:
    """Whether these are concrete numbers, whose bounds can be checked; those of a sweep are known only as the
    program runs."""
    return not any(isinstance(number, jax.core.Tracer) for number in numbers)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Any]):
    """One batch of a client's examples; reads like its columns: `batch["x"]`, `batch.columns`.

    The last batch of a client is padded to the fixed size with copies of the client's own examples. A loss
    that returns one value an example needs no care, for the engine masks the copies; a loss in which examples
    meet (a Cox risk set) must respect `mask`.
    """

    columns: Columns  # each leaf [B, ...]
    mask: Array  # [B] float32: 1 for an example, 0 for padding

    def split(self, parts: int) -> tuple["Batch", ...]:
        """The batch in `parts` parts; part i has rows i, i + parts, i + 2 parts, ...

        Padding comes last, so a short batch is split as evenly as a full one. A part without examples has a
        loss of zero.

        >>> import jax.numpy as jnp
        >>> short = Batch({"x": jnp.arange(5)}, mask=jnp.array([1.0, 1.0, 1.0, 0.0, 0.0]))
        >>> [(part["x"].tolist(), part.mask.tolist()) for part in short.split(2)]
        [([0, 2, 4], [1.0, 1.0, 0.0]), ([1, 3], [1.0, 0.0])]
        """
        if not 1 <= parts <= self.mask.shape[0]:
            raise ValueError(
                f"a batch of {self.mask.shape[0]} rows splits into 1 to as many parts, got {parts}: take larger batches"
            )
        return tuple(jax.tree.map(lambda x, i=i: x[i::parts], self) for i in range(parts))

    def __getitem__(self, name: Any) -> Any:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)
