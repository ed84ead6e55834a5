"""Error feedback: what a lossy stage drops in one round is added to what the client sends in its next.

    sent = encode(u + e),    e <- (u + e) - expand(sent)

The residual e stays with the client between rounds, so that nothing is lost but only late; biased stages
(top-k, sign) converge with it. Seide et al., Interspeech 2014; Karimireddy et al., "Error Feedback Fixes
SignSGD", ICML 2019.

>>> from fedjax_core.uplink.quantize import quantize
>>> feedback(quantize(bits=4)).name
'feedback(quantize)'
"""

from typing import Any

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Message, Own, Update
from fedjax_core.uplink.base import Sender, Stage, check_expands


@with_settings
def feedback(inner: Stage) -> Stage:
    """`inner` with the client keeping what it loses, in 32 bits at least; one such copy of the update a
    client."""
    if not isinstance(inner, Stage):
        raise TypeError(
            f"feedback() wraps a stage, got {type(inner).__name__}: write feedback(quantize(bits=4))"
        )
    if inner.hides:
        raise ValueError(
            f"feedback() keeps what the server does not read of a message, and {inner.name} lets it read none: leave it out"
        )
    if inner.promises.noise is not None and inner.promises.at == "client":
        raise ValueError(
            f"feedback() would take the noise of {inner.name} back in the next round: put what is lossy alone into it, as in "
            f"chain({inner.name}, feedback(quantize(8)))"
        )

    def init(shapes: Update) -> Any:
        return inner.init(tree.wide(shapes))

    def init_client(shapes: Update) -> Own:
        check_expands(inner, tree.wide(shapes), f"feedback({inner.name})")
        return tree.zeros_like(tree.wide(shapes)), inner.init_client(tree.wide(shapes))

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        residual, rest = own
        wanted = tree.add(tree.wide(update), residual)
        sent, rest = inner.encode(state, rest, wanted, sender)
        return sent, (tree.sub(wanted, tree.wide(inner.expand(state, sent, tree.shapes(wanted)))), rest)

    def expand(state: Any, message: Message, shapes: Update) -> Update:
        return inner.expand(state, message, tree.wide(shapes))

    return inner._replace(
        name=f"feedback({inner.name})", init=init, init_client=init_client, encode=encode, expand=expand
    )
