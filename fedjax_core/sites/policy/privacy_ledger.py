"""`Ledger`: the privacy loss of all of a site's updates so far, as an epsilon that its policy may limit.

    leaving: clip C, noise z, delta, epsilon    each update is clipped to C, and N(0, (z C)^2) or more is added
    mu^2 <- mu^2 + (2 / z)^2                    before each update leaves, or is refused after work on the data
    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)

Whatever changes in a site's data, its clipped updates before and after are at most 2 C apart: a patient more,
less or other moves an update by at most 2 / z standard deviations. Successive Gaussian mechanisms are one
Gaussian mechanism with the sum of their mu^2 (twice the rho of zCDP), and the epsilon is exact for it, not a
bound: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8;
Dong, Roth and Su, "Gaussian Differential Privacy", JRSS B 2022. Sites are not drawn at random, so there is no
amplification by sampling. If departments are clients, the clip and the noise are those of each department's
update, and the mean that leaves discloses no more than all of them: the epsilon holds for a patient of one
department; for a patient of k it is as if k updates had left.

By default the noise is the site's own (noise.py), and the epsilon holds whatever the study does. With `by =
"study"` it is the noise that the study says it adds; the epsilon then holds if the study's code, whose hash
the policy allows, really does so, with draws that an observer does not know. Noise made of a round's `key`
hides nothing from the coordinator, which has the key; noise that the server adds only protects from those who
see the model alone. Counts of examples are sent openly. If departments are clients and the site adds the
noise, clip and noise are of their mean, and the epsilon also holds for a patient of several.

The site's staff begins a ledger once (`fedjax-core account begin site.toml`). A missing one is refused, not
begun anew: that would forget the loss so far.

>>> round(epsilon(1.0, delta=1e-5), 5)
4.37718
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.special import log_ndtr, ndtr

from fedjax_core.files import make_folder, write_private, write_whole
from fedjax_core.sites import audit
from fedjax_core.sites.protocol.request import may_come_again
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.envelope import Header


class NoAccount(Refused):
    """The policy demands a privacy ledger, and there is none."""

    code = "no-account"


def epsilon(privacy_loss: float, delta: float) -> float:
    """The epsilon, at this delta, of Gaussian mechanisms whose mu^2 add up to `privacy_loss`; rounded up in
    the ninth digit."""
    mu = math.sqrt(privacy_loss)

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
    """The privacy loss of one site's updates over all runs, studies and restarts, in `told.json` in its
    folder, or in memory.

    The site's audit log records it too, and pruning keeps it there. The larger of both counts, so removing
    the file, or restoring an older one, forgets nothing. A ledger in a folder that several site files name
    (`account`) has no common audit log: there the file alone counts, one process at a time holds it, and if
    it is missing, nothing leaves.

    An update that leaves again with the same bits, as after a lost reply, costs nothing. A refusal after work
    on the data discloses something too: it is counted as an update whose digest is "declined" and the
    question's.
    """

    def __init__(self, folder: Path | None, account: Path | None = None) -> None:
        """Raises ValueError if the file is damaged."""
        where = account or folder
        self._path = None if where is None else where / "told.json"
        self._audit = folder / "audit" if folder is not None and account is None else None
        self._shared = account is not None
        self._privacy_loss: float | None = 0.0 if folder is None else None
        self._written, self._last = 0.0, dict[str, str]()  # where -> digest
        self._seen: tuple[int, ...] | None = None  # the file's status when last read
        self._refresh()

    @staticmethod
    def begin(where: Path) -> Path:
        """Begins a ledger without any loss in this folder, and returns its file; raises FileExistsError if
        there is one."""
        return write_private(make_folder(where) / "told.json", json.dumps({"told": 0.0, "last": {}}).encode())

    def check(self) -> None:
        """Raises `NoAccount` if the ledger is missing: there is neither its file nor a record in the audit
        log."""
        if (
            self._path is None
            or self._written
            or self._path.exists()
            or (not self._shared and self.privacy_loss)
        ):
            return
        raise NoAccount(
            "the policy has an account of an epsilon kept (leaving.delta), and there is none: restore told.json from its backup, or, where "
            "there never was one, have it begun (fedjax-core account begin site.toml)"
        )

    @property
    def privacy_loss(self) -> float:
        """The sum of mu^2 of all updates."""
        self._refresh()
        # Read late: a site whose policy keeps no account reads no log, and by now the log is open and has no
        # torn end.
        if self._privacy_loss is None:
            logged = (
                [] if self._audit is None else [entry.about.get("told") for entry in audit.show(self._audit)]
            )
            # Updates, refusals and pruned entries all record the loss.
            self._privacy_loss = max((float(x) for x in logged if isinstance(x, int | float)), default=0.0)
        self._privacy_loss = max(self._privacy_loss, self._written)
        return self._privacy_loss

    def after(self, where: str, noise: float, digest: str | None = None) -> float:
        """The privacy loss once an update with this digest has left for this place; None: the digest that
        left before, if any."""
        privacy_loss = self.privacy_loss
        again = where in self._last and digest in (None, self._last[where])
        return privacy_loss if again else privacy_loss + (2 / noise) ** 2

    def add(self, where: str, noise: float, digest: str, request: Header) -> float:
        """Counts an update that answers `request`, on the disk before it leaves; returns the privacy loss."""
        self._privacy_loss = privacy_loss = self.after(where, noise, digest)
        self._last.pop(where, None)
        self._last[where] = digest
        self._last = may_come_again(self._last, request)
        if self._path is not None:
            write_whole(self._path, json.dumps({"told": privacy_loss, "last": self._last}))
            self._written, self._seen = privacy_loss, _stat(self._path)
        return privacy_loss

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A context manager that locks a shared ledger against other processes."""
        if not self._shared or self._path is None:
            yield
            return
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _refresh(self) -> None:
        """Reads the file if another process, or the site's staff, has written it."""
        if self._path is not None and (now := _stat(self._path)) != self._seen:
            self._seen = now
            if now is not None:
                self._written, self._last = _read(self._path)


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def _read(path: Path) -> tuple[float, dict[str, str]]:
    try:
        document: Any = json.loads(path.read_text())
        privacy_loss, last = (
            float(document["told"]),
            {str(where): str(digest) for where, digest in document["last"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        privacy_loss, last = math.nan, {}
    if not (math.isfinite(privacy_loss) and privacy_loss >= 0):
        raise ValueError(
            f"{path}, which has what this site's updates have told, is damaged: restore it from its backup, or, where no other "
            "site's file names it, remove it, and it is made anew from the site's audit log"
        )
    return privacy_loss, last
