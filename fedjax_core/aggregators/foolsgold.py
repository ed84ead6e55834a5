"""FoolsGold: clients whose reports are much alike count less, as copies of one attacker would.

    c_ij = cos(u_i, u_j);  v_i = max_j c_ij;  c_ij <- c_ij v_i / v_j where v_j > v_i        (pardoning)
    a_i = 1 - max_j c_ij, divided by the largest;  a_i <- log(a_i / (1 - a_i)) + 1/2, clipped to [0, 1]        value = sum a_i u_i / sum a_i

It is for many liars among clients whose data differ: it misses a single liar, and takes clients with the same
data for liars. This compares the reports of one round; the paper adds up each client's over the rounds, for
which clients must be identified. Fung et al., "The Limitations of Federated Learning in Sybil Settings", RAID
2020, algorithm 1.

>>> from fedjax_core.aggregators.base import apply
>>> apply(foolsgold(), jnp.array([[1.0, 0.0], [0.0, 1.0], [-5.0, -5.0], [-5.0, -5.0]])).tolist()
[0.5, 0.5]
"""

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def foolsgold() -> Aggregator:
    """FoolsGold on the reports of a round, which sets all weights itself. If all reports are alike, their
    mean."""

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Ruling:
        norms = jnp.linalg.norm(rows, axis=1)
        unit = rows / jnp.where(norms > 0, norms, 1)[:, None]
        pairs = here[:, None] & here[None] & ~jnp.eye(len(rows), dtype=bool)
        alike = jnp.where(pairs, unit @ unit.T, -1)
        most = jnp.max(alike, axis=1)
        pardon = pairs & (most[None] > most[:, None]) & (most[None] > 0)
        alike = jnp.where(pardon, alike * most[:, None] / jnp.where(pardon, most[None], 1), alike)
        trust = jnp.where(here, jnp.clip(1 - jnp.max(alike, axis=1), 0, 1), 0)
        trust = trust / jnp.maximum(jnp.max(trust), 1e-12)
        odds = jnp.log(jnp.maximum(trust, 1e-12) / jnp.maximum(1 - trust, 1e-12)) + 0.5
        trust = jnp.where(here, jnp.clip(odds, 0, 1), 0).astype(rows.dtype)
        trust = jnp.where(jnp.any(trust > 0), trust, here.astype(rows.dtype))
        return Ruling(trust @ rows / jnp.maximum(jnp.sum(trust), 1e-12), trust > 0)

    return of_reports("foolsgold", rule, tells=True, alike=True)
