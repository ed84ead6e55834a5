"""FLTrust: reports are scaled to the length of the server's own, and count by the cosine of their angle to
it.

    t_i = max(0, cos(u_i, u_0))        value = sum_i t_i |u_0| / |u_i| u_i / sum_i t_i

u_0 comes from a small clean dataset of the server. Here that is a client, which is in each cohort at a place
of its own, so that the server trains like all others. It has no vote itself. Without it nothing is trusted,
and the value is zeros. Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
NDSS 2021, algorithm 2.

>>> from fedjax_core.aggregators.base import apply
>>> apply(fltrust(trusted=0), jnp.array([[3.0, 0.0], [5.0, 0.0], [-100.0, 0.0]])).tolist()
[3.0, 0.0]
"""

import jax.numpy as jnp

from fedjax_core.aggregators.base import Aggregator, Ruling, of_reports
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key


@with_settings
def fltrust(trusted: int = 0) -> Aggregator:
    """FLTrust with the report at this place of the cohort as the server's own. The weights of others do not
    count."""
    if not trusted >= 0:
        raise ValueError(
            f"fltrust needs the place of the server's own report in the cohort, 0 or more, got {trusted}"
        )

    def rule(rows: Array, here: Array, weights: Array, key: Key) -> Ruling:
        root, there = rows[trusted], here[trusted]
        norms = jnp.linalg.norm(rows, axis=1)
        length = norms[trusted]
        others = (
            here & (jnp.arange(len(rows), dtype=jnp.int32) != trusted) & (norms > 0) & there & (length > 0)
        )
        unit = rows / jnp.where(norms > 0, norms, 1)[:, None]
        trust = jnp.where(others, jnp.maximum(unit @ (root / jnp.where(length > 0, length, 1)), 0), 0)
        total = jnp.sum(trust)
        return Ruling(trust @ unit * (length / jnp.where(total > 0, total, 1)), trust > 0)

    return of_reports("fltrust", rule, tells=True, alike=True, at_least=2)
