"""Exact statistics over clients or sites: sums that each site computes of its own rows give the results of
the pooled rows.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "y": [1.0, 2.0, 3.0, 5.0], "dose": [0, 1, 0, 1]}, by="site")
>>> glm("y ~ dose", clients).coefficients
{'Intercept': 2.0, 'dose': 1.5}
"""

from fedjax_core.stats.comparisons import TableTest, TTest, chi_square, fisher, t_test
from fedjax_core.stats.competing_risks import Incidence, cumulative_incidence
from fedjax_core.stats.correlation import Correlation, correlation
from fedjax_core.stats.cox import Cox, cox
from fedjax_core.stats.describe import TableOne, table_one
from fedjax_core.stats.glm import Glm, glm
from fedjax_core.stats.glmm import Glmm, glmm
from fedjax_core.stats.harmonise import Combat, combat
from fedjax_core.stats.histogram import Histogram, histogram
from fedjax_core.stats.imputation import Imputed, Rubin, impute, rubin
from fedjax_core.stats.lmm import Lmm, lmm
from fedjax_core.stats.meta import Meta, meta
from fedjax_core.stats.newton import NoEstimate
from fedjax_core.stats.ordinal import Ordinal, ordinal
from fedjax_core.stats.pca import Pca, pca
from fedjax_core.stats.quantiles import Quantiles, quantiles
from fedjax_core.stats.rmst import Rmst, rmst
from fedjax_core.stats.survival import KaplanMeier, LogRank, kaplan_meier, logrank
from fedjax_core.stats.weighting import TreatmentEffect, treatment_effect

__all__ = [
    "Combat",
    "Correlation",
    "Cox",
    "Glm",
    "Glmm",
    "Histogram",
    "Imputed",
    "Incidence",
    "KaplanMeier",
    "Lmm",
    "LogRank",
    "Meta",
    "NoEstimate",
    "Ordinal",
    "Pca",
    "Quantiles",
    "Rmst",
    "Rubin",
    "TTest",
    "TableOne",
    "TableTest",
    "TreatmentEffect",
    "chi_square",
    "combat",
    "correlation",
    "cox",
    "cumulative_incidence",
    "fisher",
    "glm",
    "glmm",
    "histogram",
    "impute",
    "kaplan_meier",
    "lmm",
    "logrank",
    "meta",
    "ordinal",
    "pca",
    "quantiles",
    "rmst",
    "rubin",
    "t_test",
    "table_one",
    "treatment_effect",
]
