"""Preprocessing at a site: computes the sums of its columns, and applies the numbers that all sites' sums
give.

    measure     sums of the columns as they lie there  ─►  coordinator: merged in the order of the sites (preprocessing.py)
    train, evaluate, score     bring the numbers: the site applies them when they come for the first time, and works on what comes of that

The steps are of the study, so of its hash. Which kinds of sums a step needs is in its `leaving`: "moments",
"range" or "categories". A site whose policy does not name them in `leaving.fields` tells none, and none does
of what fewer than `minimum.cell` of its examples have. As every request brings the numbers, a site that was
away, or begins anew, has those that count.

    steps = [fc.preprocess.Standardise("x"), fc.preprocess.OrdinalEncode("sex")]
    fed = fc.Federation(composed, sites, batch_size=4, epochs=1, prepare=steps)
    fed.prepared.apply(held_out)        the same of data at hand
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.preprocess import Fitted, Step, finalize, sums_of
from fedjax_core.sites.protocol.request import PREPARED
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.envelope import Envelope
from fedjax_core.sites.wire.trees import from_tensors_open
from fedjax_core.types import Columns

Steps = tuple[Step, ...]


class SumsStay(Refused):
    """The policy does not let a step's sums leave."""

    code = "declined"


class NotPrepared(Refused):
    """The study prepares its columns, and the request does not bring the numbers for it."""

    code = "not-prepared"


class BadNumbers(Refused):
    """What came as a step's numbers cannot be applied."""

    code = "bad-numbers"


def leaving(steps: Steps) -> tuple[str, ...]:
    """The kinds of sums that leave, by the names that a policy has for them."""
    return tuple(dict.fromkeys(name for step in steps for name in step.releases))


def held_back(steps: Steps, fields: Iterable[str]) -> dict[str, str]:
    """Of a policy that lets these fields leave: the kinds of sums that it keeps, each with the steps that
    need it, in words."""
    kept = [name for name in leaving(steps) if name not in set(fields)]
    return {
        name: ", ".join(f"{type(step).__name__}({step.column!r})" for step in steps if name in step.releases)
        for name in kept
    }


def check_rest(steps: Steps, raw: Clients) -> None:
    """Raises for what is not finite: NaN may be where a step fills it."""
    raw.check_finite(missing=[step.column for step in steps])


def one_row(steps: Steps, raw: Clients) -> Columns:
    """A row of the form that the examples will have, whatever its values."""
    row = jax.tree.map(lambda x: x[:1], raw.columns)
    return _of_rows(steps, raw, 1)(row) if steps else row


def alone(steps: Steps, raw: Clients) -> Clients | None:
    """What is known of the examples before any site tells its sums; None where that is nothing.

    That are the columns that no step makes, and codes of categories that the study lists.
    """
    others = [step.column for step in steps if step.releases and step.column in raw.named_columns]
    if len(others) == len(raw.named_columns):
        return None
    own_steps, rest = tuple(step for step in steps if not step.releases), raw.without(*others)
    return rest.with_columns(_of_rows(own_steps, rest, 0)(rest.columns)) if own_steps else rest


class Preparation:
    """Reads the numbers of all sites that a request brings, and applies them where they are not those that
    were applied last."""

    def __init__(
        self, steps: Steps, raw: Clients, check: Callable[[Clients], None], folder: Path | None = None
    ) -> None:
        """`check` raises for examples that the study's task cannot use. What is made of large mapped columns
        is on the folder's disk."""
        self.steps, self.raw, self._check, self._folder = steps, raw, check, folder
        self.digest: str | None = None
        """Of the numbers that were applied last."""
        self.clients = raw
        """The examples as those numbers make them."""
        self._like = {PREPARED: _of_rows(steps, raw, 0).parameters}

    def take(self, envelope: Envelope) -> Envelope:
        """The request without the numbers in it; `clients` are then what they make.

        Raises a `Refused` where they are not there, or cannot be applied.
        """
        brought: dict[str, np.ndarray] = {}
        rest: dict[str, np.ndarray] = {}
        for name, x in envelope.tensors.items():
            (brought if name.startswith(f"['{PREPARED}']") else rest)[name] = x
        if not brought:
            raise NotPrepared(
                "the study prepares its columns, and the request has no numbers for it; install one version at both ends"
            )
        numbers = from_tensors_open(brought, self._like)[PREPARED]
        if bad := [name for name, x in brought.items() if not np.isfinite(x).all()]:
            raise BadNumbers(
                f"the numbers {bad[0]} of preprocessing hold NaN or an infinity; look at the sites' columns"
            )
        for step, given, own in zip(self.steps, numbers, self._like[PREPARED], strict=True):
            # The study alone determines these parameters.
            if not step.releases and any(not np.array_equal(given[name], own[name]) for name in own):
                raise BadNumbers(
                    f"{type(step).__name__}({step.column!r}) is settled by the study, and the request says otherwise"
                )
        fitted = Fitted(self.steps, numbers)
        if fitted.digest != self.digest:
            self.clients, self._fitted = self._apply(fitted, self.raw), fitted
            self.digest = fitted.digest
        return Envelope(envelope.header, rest)

    def of(self, clients: Clients) -> Clients:
        """Others of the site's examples, as the numbers that were applied last make them."""
        return self._apply(self._fitted, clients)

    def _apply(self, fitted: Fitted, clients: Clients) -> Clients:
        prepared = fitted.apply(clients, self._folder)
        self._check(prepared)
        return prepared


def _of_rows(steps: Steps, raw: Clients, count: int) -> Fitted:
    """The steps with numbers of the first rows alone; of none, a vocabulary is a vector of length 0."""
    return finalize(steps, [sums_of(steps, jax.tree.map(lambda x: x[:count], raw.columns))])
