"""The graph of peers, who exchange masks and shares: all with all up to a hundred sites, fifty peers each
above.

Above a hundred, sites are put in a ring in an order drawn by the session, a digest of everybody's keys, and
each takes the nearest `degree / 2` on either side. Every site computes the graph itself, so the server cannot
choose its peers. Masks cancel within each connected part of the graph, so a sum over a graph in parts would
reveal the sum of each part: sites refuse it (`connected`). Bell et al., CCS 2020.

>>> sorted(peers(["a", "b", "c"], b"session")["b"])
['a', 'c']
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

FULL = 100
"""The largest number of sites at which each is the peer of all others."""
DEGREE = 50


def peers(
    names: Sequence[str], session: bytes, full: int = FULL, degree: int = DEGREE
) -> dict[str, frozenset[str]]:
    """{site: its peers}, symmetric. `degree` is even, and used where there are more than `full` sites."""
    if degree % 2 or degree < 2:
        raise ValueError(
            f"a site has as many peers on either side of it, so the degree must be even and at least 2, got {degree}"
        )
    n = len(names)
    if n <= max(full, degree + 1):
        return {name: frozenset(names) - {name} for name in names}
    order = sorted(names, key=lambda name: hashlib.sha256(session + name.encode()).digest())
    steps = [d for d in range(-degree // 2, degree // 2 + 1) if d]
    return {name: frozenset(order[(i + d) % n] for d in steps) for i, name in enumerate(order)}


def connected(graph: Mapping[str, Collection[str]], names: Collection[str]) -> bool:
    """Whether these sites are connected by peers among them."""
    left = set(names)
    ready = [left.pop()] if left else []
    while ready:
        reached = left & set(graph[ready.pop()])
        left -= reached
        ready.extend(reached)
    return not left
