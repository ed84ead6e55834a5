"""EF21: clients send, compressed, the difference between their update and the server's estimate of it, and
the server adds it up.

    client: c_i = C(u_i - g_i),  g_i <- g_i + c_i        server: g <- g + (clients here / population) mean c_i;  the update is g

Messages shrink as updates settle, so the error vanishes where a biased C alone would stall; unlike
`feedback`, it sends no residual late. Reports count alike: use `weighting=uniform` where clients are of
different sizes. Richtarik et al., "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
Feedback", NeurIPS 2021, algorithm 2; with some of the clients a round, Fatkhullin et al., "EF21 with Bells &
Whistles", 2021, algorithm 2.

>>> from fedjax_core.uplink.topk import topk
>>> ef21(topk(0.05), population=100).name
'ef21(topk)'
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Key, Message, Own, Update, known
from fedjax_core.uplink.base import Info, Sender, Stage, check_expands, stage


class Kept(NamedTuple):
    """The state of the server, or of a client."""

    believed: Update  # g, or g_i
    inner: Any


@with_settings
def ef21(inner: Stage, population: int | None = None) -> Stage:
    """`inner`, such as `topk(0.05)`, on the change of the update; each client and the server keep one update,
    in 32 bits at least.

    `population` is the number of clients; without it all of them must be in every round.
    """
    if not isinstance(inner, Stage):
        raise TypeError(
            f"ef21() wraps a stage, got {type(inner).__name__}: write ef21(topk(0.05), population=100)"
        )
    if inner.hides:
        raise ValueError(
            f"ef21() keeps what the server reads of a message, and {inner.name} lets it read none: leave it out"
        )
    if population is not None and known(population) and not population >= 1:
        raise ValueError(f"ef21 needs the population, 1 client or more, got {population}")

    def init(shapes: Update) -> Kept:
        return Kept(tree.zeros_like(tree.wide(shapes)), inner.init(tree.wide(shapes)))

    def init_client(shapes: Update) -> Kept:
        check_expands(inner, tree.wide(shapes), f"ef21({inner.name})")
        return Kept(tree.zeros_like(tree.wide(shapes)), inner.init_client(tree.wide(shapes)))

    def encode(state: Kept, own: Kept, update: Update, sender: Sender) -> tuple[Message, Own]:
        sent, rest = inner.encode(state.inner, own.inner, tree.sub(tree.wide(update), own.believed), sender)
        read = tree.wide(inner.expand(state.inner, sent, tree.shapes(own.believed)))
        return sent, Kept(tree.add(own.believed, read), rest)

    def expand(state: Kept, message: Message, shapes: Update) -> Update:
        return inner.expand(state.inner, message, tree.wide(tree.shapes(shapes)))

    def finish(state: Kept, value: Update, info: Info, key: Key) -> tuple[Update, Any]:
        change, kept = inner.finish(state.inner, value, info, key)
        share = 1.0 if population is None else jnp.minimum(info.clients / population, 1)
        believed = tree.add(state.believed, tree.scale(share, tree.wide(change)))
        return believed, Kept(believed, kept)

    return stage(
        f"ef21({inner.name})", init=init, init_client=init_client, encode=encode, expand=expand, finish=finish
    )
