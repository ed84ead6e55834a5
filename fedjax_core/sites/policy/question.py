"""Reduces a request to a `Question`: its model, and a digest of everything that its answer depends on.

    train       digest   of the tensors and of the key for its draws; not of the time limit, see time_limit.py
                model    of the model's parameters in the message, with the parameters of preprocessing
    evaluate    model    of the same parameters, as in training; none for personalised models
    score       model    the same
    statistics  digest   of the statistic
    measure, describe    use the site's data alone

The model in a request to train is known if the parameters are sent as they are, whatever else is sent; not if
a downlink encodes them.

>>> from fedjax_core import algorithms, compose, models
>>> composed = compose(algorithms.scaffold(models.linear(features=2), 0.1, 4))
>>> Places.of(composed, prepares=False)
Places(trained=("['message'].params['b']", "['message'].params['w']"), evaluated=("['params']['b']", "['params']['w']"), prepares=False)
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_core.round import Round, state_shapes
from fedjax_core.sites.policy.answered import Question
from fedjax_core.sites.protocol.request import PREPARED
from fedjax_core.sites.wire.envelope import Envelope
from fedjax_core.sites.wire.trees import leaf_specs

_OF_THE_SITE = ("measure", "describe")


class Places(NamedTuple):
    """The place of the model in requests: the names of the tensors that are its parameters, leaf by leaf."""

    trained: tuple[str, ...] | None
    """None if some parameters are not in the message as they are evaluated."""
    evaluated: tuple[str, ...]
    prepares: bool
    """Whether requests contain the parameters of preprocessing too."""

    @classmethod
    def of(cls, composed: Round, prepares: bool) -> "Places":
        """The places in requests of this round."""
        algorithm, state = composed.algorithm, state_shapes(composed)
        evaluated = tuple(leaf_specs({"params": state.params}))
        if algorithm.personal is not None or algorithm.exchanges[0].address is not None:
            return cls(None, evaluated, prepares)
        leaves, structure = jax.tree.flatten(state.server)
        params = jax.tree.leaves(jax.tree.unflatten(structure, range(len(leaves))).params)
        # The state's first leaves are the server's.
        traced, sends = jax.make_jaxpr(lambda state: composed.broadcast(0, state)[0], return_shape=True)(
            state
        )
        names = leaf_specs({"message": sends})
        sent = {id(out): name for name, out in zip(names, traced.jaxpr.outvars, strict=True)}
        trained = tuple(
            sent[id(traced.jaxpr.invars[i])] for i in params if id(traced.jaxpr.invars[i]) in sent
        )
        return cls(trained if len(trained) == len(params) else None, evaluated, prepares)


def question(envelope: Envelope, places: Places, data: str, *, any_model: bool = False) -> Question | None:
    """The question of a request; None for kinds whose answers are not counted.

    `data`: the fingerprint of the site's data; `any_model`: the site trains any model, so the model's digest
    is not needed."""
    header, tensors = envelope
    place = (header.kind, header.run, header.round, header.exchange)
    if header.kind in _OF_THE_SITE:
        return Question(*place, digest="", data=data)
    if header.kind == "statistics":
        return Question(*place, digest=_digest(tensors, sorted(tensors)), data=data)
    if header.kind not in ("train", "evaluate", "score"):
        return None
    prepared = (
        sorted(name for name in tensors if name.startswith(f"['{PREPARED}']")) if places.prepares else []
    )
    if header.kind == "train":
        visible = not (any_model or places.trained is None or header.exchange)
        drawn = f"{header.digest}/{header.fields.get('key')}/{header.fields.get('key_kind')}"
        model = (
            _digest(tensors, (*places.trained, *prepared)) if visible and places.trained is not None else ""
        )
        return Question(
            *place, digest=hashlib.sha256(drawn.encode()).hexdigest()[:32], model=model, data=data
        )
    model = _digest(tensors, (*places.evaluated, *prepared))
    return Question(*place, digest=model or header.digest[:32], model=model, data=data)


def _digest(tensors: dict[str, np.ndarray], names: Iterable[str]) -> str:
    """The digest of these tensors in their order; empty if one is missing."""
    digest = hashlib.sha256()
    for name in names:
        if name not in tensors:
            return ""
        digest.update(tensors[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]
