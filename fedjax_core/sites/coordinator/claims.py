"""How many examples a site may say that it has: the number agreed with it, or at most 100 times what smaller
sites have together.

The number decides how much a site's report weighs, and only the site can count. So the coordinator agrees on
a largest number with each site and writes it into its roster:

    [examples]
    charite = 50000

Without such a line a site is compared with the others. Sites are looked at from the smallest to the largest.
One that says more than `MOST` times what those before it have together is not believed, and neither is any
larger one; so several liars cannot vouch for each other. Hospitals that differ as 1 to 100 are believed, and
so are all where they are one's own: in the coordinator's process, on a Ray that it started for a try, and in
a consortium on one machine.

>>> doubtful({"oslo": 50, "mayo": 5000, "mallory": 10**15}, {})
{'mallory': 'mallory says that it has 1000000000000000 examples, more than 100 times what the smaller sites have together (5050)...'}
>>> doubtful({"oslo": 50, "mayo": 5000, "mallory": 10**6}, {"mallory": 10**6})
{}
"""

from collections.abc import Mapping

MOST = 100
"""A site without an agreed number has at most so many times the examples that smaller sites have together."""


def doubtful(claimed: Mapping[str, int], agreed: Mapping[str, int]) -> dict[str, str]:
    """Why each site whose number of examples is not believed is not."""
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
    """(the site with more than half of all examples of three sites or more, its share), where its number was
    not agreed on."""
    name = max(claimed, key=lambda one: claimed[one])
    share = claimed[name] / sum(claimed.values())
    return (name, share) if len(claimed) > 2 and share > 0.5 and name not in agreed else None
