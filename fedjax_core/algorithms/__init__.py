"""Federated algorithms: one paper, one file. Each is a value, an `Algorithm`, and knows no backend."""

from fedjax_core.algorithms import fedopt
from fedjax_core.algorithms.afl import afl
from fedjax_core.algorithms.analytic import analytic
from fedjax_core.algorithms.apfl import apfl
from fedjax_core.algorithms.base import (
    Aggregate,
    Algorithm,
    Client,
    Each,
    Exchange,
    Report,
    Seen,
    Told,
    by_examples,
    gradient,
    uniform,
)
from fedjax_core.algorithms.by_round import by_round, scheduled
from fedjax_core.algorithms.cfl import cfl
from fedjax_core.algorithms.diloco import diloco
from fedjax_core.algorithms.ditto import ditto
from fedjax_core.algorithms.fedadamw import fedadamw
from fedjax_core.algorithms.fedadmm import fedadmm
from fedjax_core.algorithms.fedala import fedala
from fedjax_core.algorithms.fedasync import fedasync, hinge, polynomial
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.fedcm import fedcm
from fedjax_core.algorithms.feddane import feddane
from fedjax_core.algorithms.feddf import feddf
from fedjax_core.algorithms.feddyn import feddyn
from fedjax_core.algorithms.fedex import fedex
from fedjax_core.algorithms.fedexp import fedexp
from fedjax_core.algorithms.fedfisher import fedfisher
from fedjax_core.algorithms.fedlc import fedlc
from fedjax_core.algorithms.fedlesam import fedlesam
from fedjax_core.algorithms.fedlin import fedlin
from fedjax_core.algorithms.fedmgda import fedmgda
from fedjax_core.algorithms.fedmuon import fedmuon
from fedjax_core.algorithms.fedmuon_aligned import fedmuon_aligned
from fedjax_core.algorithms.fednar import fednar
from fedjax_core.algorithms.fednova import fednova
from fedjax_core.algorithms.fedper import fedper
from fedjax_core.algorithms.fedproto import fedproto
from fedjax_core.algorithms.fedprox import add_proximal, fedprox
from fedjax_core.algorithms.fedrep import fedrep
from fedjax_core.algorithms.fedsam import fedsam
from fedjax_core.algorithms.fedsgd import fedsgd
from fedjax_core.algorithms.fedvarp import fedvarp
from fedjax_core.algorithms.flora import flora
from fedjax_core.algorithms.gaussian_heads import gaussian_heads
from fedjax_core.algorithms.gossip import gossip, metropolis
from fedjax_core.algorithms.hierarchical import hierarchical
from fedjax_core.algorithms.ifca import ifca
from fedjax_core.algorithms.importance import importance
from fedjax_core.algorithms.lgfedavg import lgfedavg
from fedjax_core.algorithms.local_training import (
    At,
    Local,
    local_training,
    look,
    server_step,
    whole_gradient,
    whole_loss,
)
from fedjax_core.algorithms.lora_fair import lora_fair
from fedjax_core.algorithms.mime import mime, mimelite
from fedjax_core.algorithms.moon import moon
from fedjax_core.algorithms.perfedavg import perfedavg
from fedjax_core.algorithms.pfedme import pfedme
from fedjax_core.algorithms.proxskip import proxskip
from fedjax_core.algorithms.qffl import qffl
from fedjax_core.algorithms.reptile import reptile
from fedjax_core.algorithms.scaffold import scaffold
from fedjax_core.algorithms.scaffold_one import scaffold_one
from fedjax_core.algorithms.sparseloco import sparseloco
from fedjax_core.algorithms.term import term
from fedjax_core.algorithms.unweighted import unweighted
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
    "afl",
    "analytic",
    "apfl",
    "by_examples",
    "by_round",
    "cfl",
    "diloco",
    "ditto",
    "fedadamw",
    "fedadmm",
    "fedala",
    "fedasync",
    "fedavg",
    "fedcm",
    "feddane",
    "feddf",
    "feddyn",
    "fedex",
    "fedexp",
    "fedfisher",
    "fedlc",
    "fedlesam",
    "fedlin",
    "fedmgda",
    "fedmuon",
    "fedmuon_aligned",
    "fednar",
    "fednova",
    "fedopt",
    "fedper",
    "fedproto",
    "fedprox",
    "fedrep",
    "fedsam",
    "fedsgd",
    "fedvarp",
    "flora",
    "gaussian_heads",
    "gossip",
    "gradient",
    "hierarchical",
    "hinge",
    "ifca",
    "importance",
    "lgfedavg",
    "local_training",
    "look",
    "lora_fair",
    "metropolis",
    "mime",
    "mimelite",
    "moon",
    "perfedavg",
    "pfedme",
    "polynomial",
    "proxskip",
    "qffl",
    "reptile",
    "scaffold",
    "scaffold_one",
    "scheduled",
    "server_step",
    "sparseloco",
    "term",
    "uniform",
    "unweighted",
    "whole_gradient",
    "whole_loss",
]
