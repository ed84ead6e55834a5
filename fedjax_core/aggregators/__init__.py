"""How reports meet: sums that merge anywhere (`mean`), or rules that need every report (`trimmed_mean`)."""

from fedjax_core.aggregators.base import Aggregator
from fedjax_core.aggregators.mean import mean
from fedjax_core.aggregators.trimmed import trimmed_mean

__all__ = ["Aggregator", "mean", "trimmed_mean"]
