"""Federated algorithms: one paper, one file. Each is a value, an `Algorithm`, and knows no backend."""

from fedjax_core.algorithms import fedopt
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Each, Exchange, Report, Seen, Told, by_examples, gradient, uniform
from fedjax_core.algorithms.by_round import by_round, scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.fednova import fednova
from fedjax_core.algorithms.fedper import fedper
from fedjax_core.algorithms.fedprox import add_proximal, fedprox
from fedjax_core.algorithms.ifca import ifca
from fedjax_core.algorithms.local_training import At, Local, local_training, server_step
from fedjax_core.algorithms.mime import mime
from fedjax_core.algorithms.moon import moon
from fedjax_core.algorithms.perfedavg import perfedavg
from fedjax_core.algorithms.proxskip import proxskip
from fedjax_core.algorithms.scaffold import scaffold
from fedjax_core.work import ONCE, TRAIN, Work

__all__ = [
    "ONCE",
    "TRAIN",
    "Aggregate",
    "Algorithm",
    "At",
    "Client",
    "Each",
    "Exchange",
    "Local",
    "Report",
    "Seen",
    "Told",
    "Work",
    "add_proximal",
    "by_examples",
    "by_round",
    "fedavg",
    "fednova",
    "fedopt",
    "fedper",
    "fedprox",
    "gradient",
    "ifca",
    "local_training",
    "mime",
    "moon",
    "perfedavg",
    "proxskip",
    "scaffold",
    "scheduled",
    "server_step",
    "uniform",
]
