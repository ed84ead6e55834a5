"""Counts what a site's updates have told so far as an epsilon, which the site's policy may limit.

    leaving: clip C, noise z, delta, epsilon      the study clips each update to C and adds N(0, (z C)^2), or more
    mu^2 <- mu^2 + (2 / z)^2                      with each update that leaves, or is refused for what came of it, before it does
    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)

Whatever changes in a site's data, its clipped updates before and after are at most 2 C apart: a patient more, less or other moves one by at
most 2 / z standard deviations. Gaussian mechanisms one after another are one of which mu^2 is the sum (twice the rho of zCDP), and this
epsilon is that mechanism's own, not a bound on it: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018,
theorem 8; Dong, Roth and Su, "Gaussian Differential Privacy", JRSS B 2022. No site is drawn by chance, so nothing is gained by that.
Where departments are clients, the clip and the noise are of each department's update, and the mean that leaves tells no more than all of
them: it is as much for a patient who is in one department, and for one who is in k as if k updates had left.

It counts what the study says that it adds, and the site adds none itself: it holds where the study's code, whose hash the policy allows,
does so, from numbers that whoever looks on does not know. Noise made of a round's `key` hides nothing from the coordinator, which has the
key; noise that the server adds is for those who see the model alone. Counts of examples are said openly.

>>> round(epsilon(1.0, delta=1e-5), 5)
4.37718
"""

import json
import math
from pathlib import Path
from typing import Any

from scipy.special import log_ndtr, ndtr

from fedjax_core.files import write_whole
from fedjax_core.sites import audit
from fedjax_core.sites.protocol.request import may_come_again
from fedjax_core.sites.wire.envelope import Header


def epsilon(told: float, delta: float) -> float:
    """The epsilon, at this delta, of Gaussian mechanisms whose mu^2 add up to `told`; rounded up in the ninth digit."""
    mu = math.sqrt(told)

    def above(guess: float) -> bool:
        upper, lower = mu / 2 - guess / mu, -mu / 2 - guess / mu
        return bool(ndtr(upper) - math.exp(guess + log_ndtr(lower)) > delta)

    if mu == 0 or not above(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while above(high):
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return high


class Ledger:
    """What one site's updates have told, over all runs and restarts: in `told.json` in its folder, or in memory.

    The site's audit log has it, too, and pruning leaves it there: so it is the larger of both, whoever removes the file, or puts an
    older one in its place.

    An update that leaves again with the same bits, as after a lost reply, tells nothing new. That none leaves is told, too: a refusal after
    work on the data is counted as an update of the digest "declined" and what was asked.
    """

    def __init__(self, folder: Path | None) -> None:
        """Raises ValueError where the file is damaged."""
        self._folder, self._path = folder, None if folder is None else folder / "told.json"
        self._told: float | None = 0.0 if folder is None else None
        self._written, self._last = 0.0, dict[str, str]()  # where -> digest
        if self._path is not None and self._path.exists():
            self._written, self._last = _read(self._path)

    @property
    def told(self) -> float:
        """Sum of mu^2."""
        if self._told is None:  # only now: a site whose policy keeps no account reads no log, and this one is open and without a torn end
            assert self._folder is not None
            said = (entry.about.get("told") for entry in audit.show(self._folder / "audit"))  # of updates, refusals, and what was pruned
            self._told = max((float(x) for x in said if isinstance(x, int | float)), default=0.0)
            self._told = max(self._told, self._written)
        return self._told

    def after(self, where: str, noise: float, digest: str | None = None) -> float:
        """`told` once an update of these bits has left in answer to this request; None: of those that left before, if any did."""
        again = where in self._last and digest in (None, self._last[where])
        return self.told if again else self.told + (2 / noise) ** 2

    def add(self, where: str, noise: float, digest: str, asked: Header) -> float:
        """Counts an update that is about to leave as the answer to what was `asked`, on the disk before it does; returns `told`."""
        self._told = told = self.after(where, noise, digest)
        self._last.pop(where, None)
        self._last[where] = digest
        self._last = may_come_again(self._last, asked)
        if self._path is not None:
            write_whole(self._path, json.dumps({"told": told, "last": self._last}))
        return told


def _read(path: Path) -> tuple[float, dict[str, str]]:
    try:
        found: Any = json.loads(path.read_text())
        told, last = float(found["told"]), {str(where): str(digest) for where, digest in found["last"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        told, last = math.nan, {}
    if not (math.isfinite(told) and told >= 0):
        raise ValueError(
            f"{path}, which has what this site's updates have told, is damaged: restore it from its backup, or remove it, and it is made "
            "anew from the site's audit log"
        )
    return told, last
