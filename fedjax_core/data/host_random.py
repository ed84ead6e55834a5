"""Addressed randomness on the host: a numpy generator for (purpose, seed, address), whatever was drawn
before.

The address is the key of a Philox counter generator (Salmon et al., "Parallel random numbers: as easy as 1,
2, 3", SC 2011) and the purpose the top word of its counter, so that generators of different address or
purpose never meet.

>>> generator(COHORT, 0, 7).integers(100) == generator(COHORT, 0, 7).integers(100)
np.True_
"""

import numpy as np

from fedjax_core.checks import at_least

COHORT, SPLIT, PARTITION, SYNTHETIC, DELAY, BATCH = range(1, 7)  # what a generator is for


def generator(purpose: int, seed: int, address: int = 0) -> np.random.Generator:
    """The generator for this purpose, seed and address (a round, a client's address): about 10 microseconds
    to make."""
    counter = np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, address], np.uint64)))


def check_seed(seed: int) -> None:
    """Raises unless the seed is a whole number that a 64-bit word holds."""
    at_least(0, seed=seed)
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
