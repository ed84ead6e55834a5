"""Delta downlink: the server sends, compressed, the difference between its message and what clients have
already.

    one stream       sent = C(m - h),      h <- h + sent    at both ends, once all clients have it
    a client each    sent = C(m - h_i),  h_i <- h_i + sent    at both ends, h_i what client i received last

What C loses is in the next difference, so clients near the server's model though C is biased (top-k), and no
error feedback is needed. In one stream the server sends the same to all, as a difference from what all of
them are known to have: a client that misses a round misses nothing. It is for few clients who are in most
rounds, such as hospitals. A memory for each client serves any cohort, at the cost of one message a client at
the server.

Gruntkowska, Tyurin and Richtarik, "EF21-P and Friends: Improved Theoretical Communication Complexity for
Distributed Optimization with Bidirectional Compression", ICML 2023.

>>> import optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.uplink.quantize import quantize
>>> algorithm = algorithms.fedavg(models.linear(features=3), optax.sgd(0.1))
>>> compose(algorithm, downlink=delta(quantize(bits=4), population=4)).downlink.name
'delta(quantize)'
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.settings import Settings, with_settings
from fedjax_core.types import Key, Message, Update, known
from fedjax_core.uplink.base import Stage, alone, check_expands, stage


class Delta(NamedTuple):
    """A downlink with memory at both ends, for `compose(downlink=)`."""

    inner: Stage
    population: int
    per_client: bool
    settings: Settings = Settings()

    @property
    def name(self) -> str:
        """The name in errors and logs."""
        return f"delta({self.inner.name})"

    @property
    def as_stage(self) -> Stage:
        """The stage of this name that changes nothing: messages are coded before it sees them."""
        return stage(self.name)._replace(settings=self.settings)

    def check(self, message: Message) -> None:
        """Raises where `inner` cannot code messages of these shapes by itself."""
        shapes = _shapes(message)
        if jax.tree.leaves((self.inner.init(shapes), jax.eval_shape(self.inner.init_client, shapes))):
            raise ValueError(
                f"{self.name} remembers what clients have, so that what is lost is sent later, and {self.inner.name} "
                "keeps state of its own: give delta() the bare stage, as in delta(quantize(bits=4), population=10)"
            )
        check_expands(self.inner, shapes, self.name)

    def encode(self, message: Message, memory: Update, key: Key) -> Message:
        """The coded difference between a message and what the memory has of it."""
        shapes = _shapes(message)
        change = tree.sub(tree.wide(coded(message)), memory)
        return self.inner.encode(self.inner.init(shapes), self.inner.init_client(shapes), change, alone(key))[
            0
        ]

    def decode(self, sent: Message, memory: Update) -> Update:
        """The memory after it has received the difference."""
        shapes = tree.shapes(memory)
        return tree.add(memory, tree.wide(self.inner.expand(self.inner.init(shapes), sent, shapes)))


def coded(message: Message) -> Update:
    """The leaves of a message that differences are sent of, with None in the place of all others."""
    return jax.tree.map(lambda x: x if _is_coded(x) else None, message)


def as_it_is(message: Message) -> Message:
    """The leaves of a message that are sent as they are: whole numbers, and single ones such as a round or a
    rate."""
    return jax.tree.map(lambda x: None if _is_coded(x) else x, message)


def _is_coded(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.size > 1


def _shapes(message: Message) -> Any:
    return tree.shapes(tree.wide(tree.shapes(coded(message))))


@with_settings
def delta(inner: Stage, population: int, per_client: bool = False) -> Delta:
    """`inner`, such as `quantize(bits=4)` or `topk(0.1)`, on the change of the message since clients received
    it.

    There are `population` clients. Without `per_client` one stream goes to all: each difference is from the
    last message that all of them received and reported to, so a client without examples, or one that is away
    for long, makes differences large. With it the server keeps a message for each client, and any cohort
    will do; it has to know who reported, so reports must not be hidden, and at real sites each site is sent
    the differences of all (one request is signed for all of them): one stream is cheaper there.

    Clients begin with the first message in full, which a real site gets once, and which no metric counts. Each
    keeps two messages between rounds, or one with `per_client`."""
    if not isinstance(inner, Stage):
        raise TypeError(
            f"delta() codes by a stage, got {type(inner).__name__}: write delta(quantize(bits=4), population=10)"
        )
    if inner.hides or inner.promises.noise is not None:
        raise ValueError(
            f"delta() takes a stage that compresses, and {inner.name} hides or protects reports: give it to uplink="
        )
    if known(population) and not population >= 1:
        raise ValueError(f"delta() needs the population, 1 client or more, got {population}")
    return Delta(inner, population, per_client)
