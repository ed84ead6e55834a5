"""Warns a user who changes one of a run's seeds and probably means all of them.

    fc.fit(key=)               the first parameters; what clients draw as they train and encode (dropout, stochastic rounding)
    Simulator(seed=)           the order in which clients go through their examples
    fc.cohorts.uniform(seed=)  who takes part in which round

Each is a setting of its own, so that one can be varied with the others held still. A model that draws no
parameters (a linear one begins with zeros) then ends at the same bits with any key.
"""

import logging
from typing import Any

import jax
import numpy as np
from jax.extend import core

from fedjax_core.types import Key, Params
from fedjax_core.xla.rewrite import jaxprs

log = logging.getLogger("fedjax_core")


def warn_of_other_seeds(sim: Any, cohorts: Any, key: Key, params: Params | None) -> None:
    """Warns where the key is not the default one but draws no parameters, and all other seeds are
    defaults."""
    if np.array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(0))):
        return
    seed, drawn = sim.settings.get("seed"), getattr(cohorts, "seed", None)
    init = sim.round.algorithm.init_params
    if seed or drawn or (params is None and _draws(jax.make_jaxpr(init)(jax.random.key(0)).jaxpr)):
        return
    where = [f"the order of examples goes by {type(sim).__name__}(seed={seed})"] if seed is not None else []
    where += [f"cohorts go by {type(cohorts).__name__}(seed={drawn})"] if drawn is not None else []
    if where:
        log.warning(
            "key= draws nothing here but dropout and the like, for the first parameters are the same with every key: %s. Runs that "
            "differ in key= alone may be equal to the last bit; to repeat a run with other draws, change each seed=.",
            ", and ".join(where),
        )


def _draws(jaxpr: core.Jaxpr) -> bool:
    """Whether the program draws random bits, itself or within what it calls."""
    return any(
        eqn.primitive.name in ("random_bits", "threefry2x32", "rng_bit_generator")
        or any(map(_draws, jaxprs(tuple(eqn.params.values()))))
        for eqn in jaxpr.eqns
    )
