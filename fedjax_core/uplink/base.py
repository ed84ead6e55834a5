"""A stage: one promise kept on the way up, with its client's half and its server's half in one value.

    client: message, own = encode(state, own, update, key)          (what crosses the wire is the message)
    server: update = expand(state, message)                         (one a client, before the aggregator)
            value, state = finish(state, value, aggregate, key)     (once an exchange, after it)

`chain` puts stages one after another: encode from first to last, expand and finish from last to first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_core import tree
from fedjax_core.settings import Settings, with_settings
from fedjax_core.types import Array, Key, Message, Own, Update


class Info(NamedTuple):
    """What `finish` may know of an exchange besides the value."""

    weight: Array  # float32: sum of the weights
    clients: Array  # float32: how many clients are in the value


class Stage(NamedTuple):
    """One wrapper on the way up. Build it with `stage`, which fills in halves that do nothing."""

    name: str
    init: Callable[[Update], Any]  # the update's shapes -> what the server keeps for this stage; clients may read it
    init_client: Callable[[Update], Own]  # the update's shapes -> what each client keeps for it
    encode: Callable[[Any, Own, Update, Key], tuple[Message, Own]]
    expand: Callable[[Any, Message], Update]
    finish: Callable[[Any, Update, Info, Key], tuple[Update, Any]]
    measurable: bool = False
    """Whether a site may tell how much of an update's size the stage leaves (`uplink_norm`): not where it adds noise or masks, for the size
    before would be known of it."""
    settings: Settings = Settings()
    """What it was made with, by the names of the arguments: `with_settings` fills it in."""


def stage(
    name: str,
    init: Callable[[Update], Any] = lambda shapes: (),
    init_client: Callable[[Update], Own] = lambda shapes: (),
    encode: Callable[[Any, Own, Update, Key], tuple[Message, Own]] = lambda state, own, update, key: (update, own),
    expand: Callable[[Any, Message], Update] = lambda state, message: message,
    finish: Callable[[Any, Update, Info, Key], tuple[Update, Any]] = lambda state, value, info, key: (value, state),
    measurable: bool = False,
) -> Stage:
    """A stage from the halves that do something."""
    return Stage(name, init, init_client, encode, expand, finish, measurable)


@with_settings
def chain(*stages: Stage) -> Stage:
    """The stages as one: `chain(clip(1.0), quantize(8))` clips, then quantises what goes on the wire. Empty, it changes nothing.

    Each stage but the first must give back, by `expand`, what it was given: those before it work on that. One that decodes only in
    `finish` (a ring of whole numbers) therefore comes first, and does by itself what was to be done before it.
    """
    for i, s in enumerate(stages):
        if not isinstance(s, Stage):
            raise TypeError(f"chain() takes stages, but argument {i} is a {type(s).__name__}: pass fc.uplink.clip(1.0) and the like")

    def shapes_between(update: Update) -> list[Update]:
        """The shapes each stage is given: those of the message of the one before."""
        given = [update]
        for i, s in enumerate(stages):
            if i:
                check_expands(s, given[-1], f"chain({', '.join(s.name for s in stages)})")
            given.append(message_shapes(s, given[-1]))
        return given[:-1]

    def init(update: Update) -> Any:
        return tuple(s.init(u) for s, u in zip(stages, shapes_between(update), strict=True)) if stages else ()

    def init_client(update: Update) -> Own:
        return tuple(s.init_client(u) for s, u in zip(stages, shapes_between(update), strict=True)) if stages else ()

    def encode(state: Any, own: Own, update: Update, key: Key) -> tuple[Message, Own]:
        kept = []
        for i, s in enumerate(stages):
            update, mine = s.encode(state[i], own[i], update, jax.random.fold_in(key, i))
            kept.append(mine)
        return update, tuple(kept)

    def expand(state: Any, message: Message) -> Update:
        for s, mine in zip(reversed(stages), reversed(state), strict=True):
            message = s.expand(mine, message)
        return message

    def finish(state: Any, value: Update, info: Info, key: Key) -> tuple[Update, Any]:
        kept = list(state)
        for i in reversed(range(len(stages))):
            value, kept[i] = stages[i].finish(state[i], value, info, jax.random.fold_in(key, i))
        return value, tuple(kept)

    measurable = all(s.measurable for s in stages)
    return Stage(f"chain({', '.join(s.name for s in stages)})", init, init_client, encode, expand, finish, measurable)


def message_shapes(stage: Stage, update: Update) -> Message:
    """The shapes of what `stage` puts on the wire for an update of these shapes; `tree.nbytes` of it is its cost a report."""

    def send(update: Update, key: Key) -> Message:
        return stage.encode(stage.init(update), stage.init_client(update), update, key)[0]

    return jax.eval_shape(send, update, jax.eval_shape(lambda: jax.random.key(0)))


def check_expands(stage: Stage, given: Update, where: str) -> None:
    """Raises unless `stage` gives back by `expand` the structure, shapes and dtypes that it was given: what is around it works on that."""
    if (said := not_given_back(stage, given)) is not None:
        raise ValueError(
            f"in {where}, stage {stage.name!r} does not give back by expand() what it was given ({said}), so what stands before it "
            "would work on numbers that are not decoded. Have it decode in expand(); or, where it decodes only in finish(), put it "
            "first and alone, and let it do the clipping and the like in its own encode()."
        )


def not_given_back(stage: Stage, given: Update) -> str | None:
    """How what `stage` gives back by `expand` differs from what it was given, in structure, shapes or dtypes; None where it does not."""
    sent = message_shapes(stage, given)
    back = jax.eval_shape(lambda sent: stage.expand(stage.init(given), sent), sent)
    before: Any = jax.tree.structure(given)
    after: Any = jax.tree.structure(back)
    if before != after:
        return f"the structure is {before} before and {after} after"
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(back), strict=True):
        if tree.wide(tree.shapes(a)) != tree.wide(tree.shapes(b)):  # in 16 bits or in 32: sums are wide
            return f"leaf {jax.tree_util.keystr(path)} is {a.dtype}{list(a.shape)} before and {b.dtype}{list(b.shape)} after"
    return None
