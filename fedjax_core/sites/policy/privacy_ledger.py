"""Counts what a site's updates have told so far as an epsilon, which the site's policy may limit.

    leaving: clip C, noise z, delta, epsilon      each update is clipped to C, and N(0, (z C)^2) or more is added
    mu^2 <- mu^2 + (2 / z)^2                      with each update that leaves, or is refused for what came of it, before it does
    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)

Whatever changes in a site's data, its clipped updates before and after are at most 2 C apart: a patient more,
less or other moves one by at most 2 / z standard deviations. Gaussian mechanisms one after another are one of
which mu^2 is the sum (twice the rho of zCDP), and this epsilon is that mechanism's own, not a bound on it:
Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8; Dong, Roth
and Su, "Gaussian Differential Privacy", JRSS B 2022. No site is drawn by chance, so nothing is gained by
that. Where departments are clients, the clip and the noise are of each department's update, and the mean that
leaves tells no more than all of them: it is as much for a patient who is in one department, and for one who
is in k as if k updates had left.

The noise is the site's own (noise.py), and this holds whatever the study does. Where the policy says `by =
"study"`, it is what the study says that it adds, and holds where the study's code, whose hash the policy
allows, does so, from numbers that whoever looks on does not know. Noise made of a round's `key` hides nothing
from the coordinator, which has the key; noise that the server adds is for those who see the model alone.
Counts of examples are said openly. Where departments are clients and the site adds the noise, clip and noise
are of their mean, and it is as much for a patient of several.

An account is begun once, by the site's staff (`fedjax-core account begin site.toml`). One that is missing is
refused, and not begun anew: that would forget what was told before.

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
    """The policy has an account of an epsilon kept, and there is none."""

    code = "no-account"


def epsilon(privacy_loss: float, delta: float) -> float:
    """The epsilon, at this delta, of Gaussian mechanisms whose mu^2 add up to `told`; rounded up in the ninth
    digit."""
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
    """What one site's updates have told, over all runs, studies and restarts: in `told.json` in its folder,
    or in memory.

    The site's audit log has it, too, and pruning leaves it there: so it is the larger of both, whoever
    removes the file, or puts an older one in its place. An account in a folder that several site files name
    (`account`) has no log of all of them: there the file alone counts, one process at a time has it, and
    where it is missing nothing leaves.

    An update that leaves again with the same bits, as after a lost reply, tells nothing new. That none leaves
    is told, too: a refusal after work on the data is counted as an update of the digest "declined" and what
    was asked.
    """

    def __init__(self, folder: Path | None, account: Path | None = None) -> None:
        """Raises ValueError where the file is damaged."""
        where = account or folder
        self._path = None if where is None else where / "told.json"
        self._audit = folder / "audit" if folder is not None and account is None else None
        self._shared = account is not None
        self._privacy_loss: float | None = 0.0 if folder is None else None
        self._written, self._last = 0.0, dict[str, str]()  # where -> digest
        self._seen: tuple[int, ...] | None = None  # of the file, when it was read
        self._refresh()

    @staticmethod
    def begin(where: Path) -> Path:
        """Begins an account of nothing told so far in this folder, and returns its file; raises
        FileExistsError where there is one."""
        return write_private(make_folder(where) / "told.json", json.dumps({"told": 0.0, "last": {}}).encode())

    def check(self) -> None:
        """Raises `NoAccount` where the account is missing: neither its file is there, nor what the audit log
        has of it."""
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
        """Sum of mu^2."""
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
        """`told` once an update of these bits has left in answer to this request; None: of those that left
        before, if any did."""
        privacy_loss = self.privacy_loss
        again = where in self._last and digest in (None, self._last[where])
        return privacy_loss if again else privacy_loss + (2 / noise) ** 2

    def add(self, where: str, noise: float, digest: str, request: Header) -> float:
        """Counts an update that is about to leave as the answer to what was `asked`, on the disk before it
        does; returns `told`."""
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
        """For a `with`: no other process has the account meanwhile, where several may."""
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
        """Reads the file where another process, or the site's staff, has written it."""
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
