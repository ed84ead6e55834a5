"""Preprocessing at a site: the sums of its columns that leave, and applying the fitted parameters.

    measure                   sums of the raw columns  ─►  coordinator: merged in the order of the sites
    train, evaluate, score    bring the parameters: the site applies new ones, and uses the prepared examples

The steps belong to the study, so to its hash. A step's `releases` names the kinds of sums that it needs:
"moments", "range" or "categories". A site whose policy does not name them in `leaving.fields` sends none, and
no site sends sums of fewer than `minimum.cell` of its examples. Every request brings the parameters, so a
site that was away, or begins anew, has the valid ones.

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
    """The study prepares its columns, and the request lacks the parameters."""

    code = "not-prepared"


class BadNumbers(Refused):
    """The parameters of a step cannot be applied."""

    code = "bad-numbers"


def leaving(steps: Steps) -> tuple[str, ...]:
    """The kinds of sums that leave, by their names in a policy."""
    return tuple(dict.fromkeys(name for step in steps for name in step.releases))


def held_back(steps: Steps, fields: Iterable[str]) -> dict[str, str]:
    """{kind of sums: steps that need it, in words} that a policy with these `leaving.fields` keeps."""
    kept = [name for name in leaving(steps) if name not in set(fields)]
    return {
        name: ", ".join(f"{type(step).__name__}({step.column!r})" for step in steps if name in step.releases)
        for name in kept
    }


def check_rest(steps: Steps, raw: Clients) -> None:
    """Raises for values that are not finite, except NaN in columns that a step fills."""
    raw.check_finite(missing=[step.column for step in steps])


def one_row(steps: Steps, raw: Clients) -> Columns:
    """A row with the dtypes and shapes of the prepared examples, whatever its values."""
    row = jax.tree.map(lambda x: x[:1], raw.columns)
    return _of_rows(steps, raw, 1)(row) if steps else row


def alone(steps: Steps, raw: Clients) -> Clients | None:
    """The columns that are known before any site sends its sums; None if there are none.

    These are the columns that no step makes, and the codes of categories that the study lists.
    """
    others = [step.column for step in steps if step.releases and step.column in raw.named_columns]
    if len(others) == len(raw.named_columns):
        return None
    own_steps, rest = tuple(step for step in steps if not step.releases), raw.without(*others)
    return rest.with_columns(_of_rows(own_steps, rest, 0)(rest.columns)) if own_steps else rest


class Preparation:
    """Applies the parameters in requests to the site's examples, whenever they differ from the last ones."""

    def __init__(
        self, steps: Steps, raw: Clients, check: Callable[[Clients], None], folder: Path | None = None
    ) -> None:
        """`check` raises for examples that the study's task cannot use. Large mapped columns are prepared on
        the folder's disk."""
        self.steps, self.raw, self._check, self._folder = steps, raw, check, folder
        self.digest: str | None = None
        """The digest of the parameters applied last."""
        self.clients = raw
        """The examples prepared by those parameters."""
        self._like = {PREPARED: _of_rows(steps, raw, 0).parameters}

    def take(self, envelope: Envelope) -> Envelope:
        """Applies the parameters in a request to `clients`, and returns the request without them.

        Raises a `Refused` if they are missing, or cannot be applied.
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
        """Other examples of the site, prepared by the parameters applied last."""
        return self._apply(self._fitted, clients)

    def _apply(self, fitted: Fitted, clients: Clients) -> Clients:
        prepared = fitted.apply(clients, self._folder)
        self._check(prepared)
        return prepared


def _of_rows(steps: Steps, raw: Clients, count: int) -> Fitted:
    """The steps fitted to the first `count` rows alone; with none, a vocabulary is a vector of length 0."""
    return finalize(steps, [sums_of(steps, jax.tree.map(lambda x: x[:count], raw.columns))])
