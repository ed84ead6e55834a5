"""Aggregation of reports: sums that merge anywhere (`mean`, `total`), or rules that need every report and
withstand lying clients."""

from fedjax_core.aggregators.adaptive import adaptive_clip, zeroing
from fedjax_core.aggregators.base import Aggregator, Ruling, apply, of_reports
from fedjax_core.aggregators.bucketing import bucketing
from fedjax_core.aggregators.bulyan import bulyan
from fedjax_core.aggregators.centered_clipping import centered_clipping
from fedjax_core.aggregators.dnc import dnc
from fedjax_core.aggregators.fltrust import fltrust
from fedjax_core.aggregators.foolsgold import foolsgold
from fedjax_core.aggregators.geometric_median import geometric_median, rfa
from fedjax_core.aggregators.krum import krum, multi_krum
from fedjax_core.aggregators.mda import mda
from fedjax_core.aggregators.meamed import meamed
from fedjax_core.aggregators.mean import mean
from fedjax_core.aggregators.nnm import nnm
from fedjax_core.aggregators.norm_bound import arc, norm_bound
from fedjax_core.aggregators.stack import stack
from fedjax_core.aggregators.total import total
from fedjax_core.aggregators.trimmed import median, trimmed_mean

__all__ = [
    "Aggregator",
    "Ruling",
    "adaptive_clip",
    "apply",
    "arc",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "dnc",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "krum",
    "mda",
    "meamed",
    "mean",
    "median",
    "multi_krum",
    "nnm",
    "norm_bound",
    "of_reports",
    "rfa",
    "stack",
    "total",
    "trimmed_mean",
    "zeroing",
]
