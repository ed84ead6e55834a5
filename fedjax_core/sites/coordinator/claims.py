"""Checks the number of examples that a site claims, by agreement or by comparison with the other sites.

The number decides the weight of a site's reports, and only the site can count. So the coordinator agrees on a
maximum with each site, and writes it into its roster:

    [examples]
    charite = 50000

Without such a line a site is compared with the others, from the smallest to the largest. A site that claims
more than `MOST` times, 100, what those before it have together is not believed, and neither is any larger
one; so several liars cannot vouch for each other. Hospitals that differ as 1 to 100 are believed. So are all
sites of one's own: in the coordinator's process, on a Ray that it started for a trial, and in a consortium on
one machine.

>>> doubtful({"oslo": 50, "mayo": 5000, "mallory": 10**15}, {})
{'mallory': 'mallory says that it has 1000000000000000 examples, more than 100 times what the smaller sites have together (5050)...'}
>>> doubtful({"oslo": 50, "mayo": 5000, "mallory": 10**6}, {"mallory": 10**6})
{}
"""

from collections.abc import Mapping

MOST = 100
"""The most examples that a site without an agreed number may have, as a multiple of all smaller sites'
together."""


def doubtful(claimed: Mapping[str, int], agreed: Mapping[str, int]) -> dict[str, str]:
    """{site: reason} of the sites whose number of examples is not believed."""
    doubts = {
        name: f"{name} says that it has {count} examples, and the roster agrees to at most {agreed[name]} ([examples]); "
        "where it has grown, agree on a larger number with the site and write that into the roster"
        for name, count in claimed.items()
        if name in agreed and count > agreed[name]
    }
    believed = sum(count for name, count in claimed.items() if name in agreed and name not in doubts)
    for name, count in sorted(claimed.items(), key=lambda one: (one[1], one[0])):
        if name in agreed:
            continue
        if believed and count > MOST * believed:
            doubts[name] = (
                f"{name} says that it has {count} examples, more than {MOST} times what the smaller sites have together ({believed}); "
                f"where that is true, agree on a largest number with the site and write `{name} = {count}` under [examples] of the roster"
            )
        else:
            believed += count
    return doubts


def dominating(claimed: Mapping[str, int], agreed: Mapping[str, int]) -> tuple[str, float] | None:
    """(site, share) of a site, among three or more, that has over half of all examples without an
    agreement."""
    name = max(claimed, key=lambda one: claimed[one])
    share = claimed[name] / sum(claimed.values())
    return (name, share) if len(claimed) > 2 and share > 0.5 and name not in agreed else None
