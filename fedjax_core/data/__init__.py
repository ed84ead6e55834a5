"""Data: the clients of a population, how examples are dealt out to them, and who takes part in a round.

>>> clients = synthetic.synthetic(1, 1, clients=5, sizes=[4, 4, 4, 4, 4])
>>> cohorts.uniform(len(clients), size=2, seed=0)(3).tolist()
[2, 3]
"""

from fedjax_core.data import cohorts, partition, preprocess, synthetic
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import Cohort

__all__ = ["Clients", "Cohort", "cohorts", "partition", "preprocess", "synthetic"]
