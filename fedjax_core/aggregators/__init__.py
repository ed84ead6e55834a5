"""How reports meet: sums that merge anywhere (`mean`, `total`), or rules that need every report (`trimmed_mean`, `median`)."""

from fedjax_core.aggregators.base import Aggregator, apply, of_reports
from fedjax_core.aggregators.mean import mean
from fedjax_core.aggregators.total import total
from fedjax_core.aggregators.trimmed import median, trimmed_mean

__all__ = ["Aggregator", "apply", "mean", "median", "of_reports", "total", "trimmed_mean"]
