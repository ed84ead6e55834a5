"""Replay protection: `ReplayGuard` accepts each message once, in its own run and round.

An authentic message can be sent again by anybody who recorded it, or by a transport that retries. So senders
number their messages, and the receiver remembers the numbers. The guard is a value: accepting gives another
one.

Both ends hold their guard in memory, and begin with an empty one. A restarted coordinator is safe from older
replies all the same: a reply names the digest of what it answers, and was not written before that
(`check_clock`). A site that died at work is sent the same bytes again, accepts them again, and answers with
the same bits.

>>> guard = ReplayGuard(run="heart-1", round=3).accept(sender="charite", run="heart-1", round=3, sequence=17)
>>> guard.accept(sender="charite", run="heart-1", round=3, sequence=17)
Traceback (most recent call last):
fedjax_core.sites.wire.replay.Replayed: message 17 of 'charite' was accepted before; a repeat changes nothing
"""

from collections.abc import Mapping

import msgspec

from fedjax_core.sites.refusal import Refused, shown

SKEW_SECONDS = 300.0
"""How far the clocks of a site and the coordinator may differ."""

_WINDOW = 256  # sequence numbers remembered of each sender: how far messages may overtake one another


class Replayed(Refused):
    """The message was accepted before."""

    code = "replayed"


class WrongRun(Refused):
    """The message belongs to another run."""

    code = "wrong-run"


class WrongRound(Refused):
    """The message belongs to a round that is over or has not begun."""

    code = "wrong-round"


class ClockSkew(Refused):
    """The clocks of the sender and the receiver differ by more than is allowed."""

    code = "clock-skew"


def check_clock(
    sender: str, created_unix_ms: int, *, earliest_unix_ms: int, latest_unix_ms: int, skew_seconds: float
) -> None:
    """Raises `ClockSkew` unless a message can have been written when it says.

    It must have been written between the message that it answers and its arrival, give or take the skew. So a
    slow link or long work is no skew, however slow or long.

    >>> check_clock("oslo", 5_000, earliest_unix_ms=1_000, latest_unix_ms=9_000_000, skew_seconds=1.0)
    >>> check_clock("oslo", 5_000, earliest_unix_ms=65_000, latest_unix_ms=66_000, skew_seconds=1.0)
    Traceback (most recent call last):
    fedjax_core.sites.wire.replay.ClockSkew: the clock of 'oslo' is 60.0 s behind ours, and at most 1 s are allowed...
    """
    ahead, behind = (created_unix_ms - latest_unix_ms) / 1000, (earliest_unix_ms - created_unix_ms) / 1000
    if max(ahead, behind) > skew_seconds:
        raise ClockSkew(
            f"the clock of {sender!r} is {max(ahead, behind):.1f} s {'ahead of' if ahead > behind else 'behind'} ours, and at most "
            f"{skew_seconds:g} s are allowed: have both machines take their time from NTP (`timedatectl set-ntp true`), and ask again"
        )


class ReplayGuard(msgspec.Struct, frozen=True):
    """The messages accepted so far in a run: accepts every message once, and only in its round.

    Sequence numbers of one sender grow, across its restarts too (a clock in nanoseconds will do). The last
    256 of each are kept, so messages may overtake one another by that many.
    """

    run: str
    round: int
    seen: Mapping[str, tuple[int, ...]] = {}  # sender -> the last sequence numbers, ascending

    def accept(self, *, sender: str, run: str, round: int, sequence: int) -> "ReplayGuard":
        """The guard that has accepted this message too; raises a `Refused` if it must not be accepted."""
        if run != self.run:
            raise WrongRun(
                f"{sender!r} speaks of run {shown(run)}, but this is {self.run!r}; it should join the present run"
            )
        if round != self.round:
            when = "is over" if round < self.round else "has not begun"
            raise WrongRound(
                f"{sender!r} speaks of round {round}, which {when}: this is round {self.round}; it should wait for the next broadcast"
            )
        seen = self.seen.get(sender, ())
        if seen and sequence <= seen[-1]:
            if sequence in seen:
                raise Replayed(
                    f"message {sequence} of {sender!r} was accepted before; a repeat changes nothing"
                )
            if len(seen) == _WINDOW and sequence < seen[0]:
                raise Replayed(
                    f"message {sequence} of {sender!r} is older than the last {_WINDOW} accepted ones, so it may be a repeat; send it anew"
                )
            seen = tuple(sorted((*seen, sequence)))
        else:
            seen = (*seen, sequence)
        return ReplayGuard(self.run, self.round, {**self.seen, sender: seen[-_WINDOW:]})

    def at(self, round: int) -> "ReplayGuard":
        """The guard in another round. Sequence numbers stay: accepted messages stay so, even if a run resumes
        from an earlier round."""
        return ReplayGuard(self.run, round, self.seen)
