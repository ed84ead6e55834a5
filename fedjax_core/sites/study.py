"""`Study`: the computation that every site runs, with the hash by which all ends check that it is the same.

A coordinator sends numbers, never code. A site builds the study itself, from a function that is installed
there and that its staff can read. The hash of the result is in every message, and the site's policy lists the
hashes that it takes part in.

    study = "heart.study:scaffold"    in the site's file: the function `scaffold` of the module `heart.study`
    arguments = { lr = 0.001 }

>>> import optax
>>> from fedjax_core import algorithms, compose, models
>>> def study(lr):
...     return Study(compose(algorithms.fedavg(models.linear(features=3), local=optax.sgd(lr))), batch_size=4, epochs=1)
>>> study(0.1).hash == study(0.1).hash, study(0.1).hash == study(0.2).hash
(True, False)
"""

import importlib
import importlib.metadata
import inspect
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax

from fedjax_core.data.batches import Amount, Order, Plan
from fedjax_core.data.preprocess import Step, check_steps
from fedjax_core.describe import code_of, identity
from fedjax_core.partial import incompatibility
from fedjax_core.round import Round, reports_of
from fedjax_core.secure_aggregation.ring import Ring
from fedjax_core.uplink.base import message_shapes


@dataclass(frozen=True)
class Study:
    """A `Round`, and how a site goes through its data: `epochs` or `steps` as in a simulator."""

    round: Round
    batch_size: int
    epochs: Amount | None = None
    steps: Amount | None = None
    seed: int = 0
    epsilon: float | None = None
    """The privacy loss of the whole run, by an accountant: recorded with every update that leaves a site,
    unless the site keeps its own account."""
    prepare: tuple[Step, ...] = ()
    """The preprocessing steps that all sites apply alike, such as `fc.preprocess.Standardise("x")`."""
    departments: bool = False
    """Whether the clients are the departments of sites, so that a site reports their mean; see
    departments.py."""
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{column: names of its features, in order}: each site puts its features into this order
    (`Clients.arranged`)."""
    held_out: float = 0.0
    """The share of each site's examples that are kept for evaluation; see held_out.py."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prepare", check_steps(self.prepare))
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held_out is the share of examples that are not trained on, from 0 to below 1, such as 0.2; got {self.held_out!r}"
            )
        object.__setattr__(self, "features", {name: tuple(of) for name, of in dict(self.features).items()})
        if self.departments and self.plan().changes:
            raise ValueError(
                "departments= needs epochs or steps that are numbers: a function of these is asked for clients by their positions, and a "
                "site's departments have none in the federation"
            )
        if self.departments and (reason := incompatibility(self.round, masked=True)) is not None:
            raise ValueError(
                f"departments of a site cannot be the clients of this: {reason}; or leave departments out"
            )
        self._check_stages()

    def _check_stages(self) -> None:
        """Raises if a stage of the uplink needs what a site lacks: keys with other sites, or a secret for
        each department."""
        composed, stage = self.round, self.round.uplink
        needed = {name for e in range(len(composed.algorithm.exchanges)) for name in composed.uses(e)}
        if not stage.hides and (
            stage.recover is not None or (among := sorted(needed & {"here", "pairs", "place"}))
        ):
            what = (
                "asks sites for something after their reports (recover)"
                if stage.recover is not None
                else f"uses {', '.join(among)}"
            )
            raise ValueError(
                f"{stage.name} {what}, and a site knows nothing of the others, nor has it keys with them: it runs in simulations "
                "(fc.Simulator, fc.ClusterSimulator); leave that stage out at real sites"
            )
        if stage.promises.secret_state:
            raise ValueError(
                f"{stage.name} keeps at the server what tells the noise of rounds before, and sites read what is kept for stages: it runs "
                "in simulations; at real sites use noise that each round draws anew, fc.privacy.client_level(bands=1)"
            )
        if self.departments and "secret" in needed:
            raise ValueError(
                f"{stage.name} draws noise by a secret of each client, and departments draw by the run's key, which everybody knows: "
                "leave departments out, or add noise in finish()"
            )

    def secure(self, e: int) -> Ring | None:
        """The ring in which reports of exchange `e` travel under masks; None without masks or reports."""
        exchanges = self.round.algorithm.exchanges
        return self.round.uplink.ring if e < len(exchanges) and exchanges[e].update is not None else None

    @property
    def clip(self) -> float | None:
        """The norm to which the uplink clips each report; None if it promises none."""
        return self.round.uplink.promises.bound

    @property
    def noise(self) -> float | None:
        """The noise in each report that leaves a site, in multiples of the clip; None without any."""
        promises = self.round.uplink.promises
        return promises.noise if promises.at == "client" else None

    @cached_property
    def whole(self) -> bool:
        """Whether updates leave with whole numbers in them, as after quantisation or under masks."""
        exchanges = self.round.algorithm.exchanges
        sent = [
            report.update
            for e, report in enumerate(reports_of(self.round))
            if exchanges[e].update is not None
        ]
        leaves = [x for update in sent for x in jax.tree.leaves(message_shapes(self.round.uplink, update))]
        return (self.round.uplink.hides or not self.departments) and any(
            not jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in leaves
        )

    @cached_property
    def hash(self) -> str:
        """The study's identity, 32 hexadecimal digits, which must be the same at all sites.

        It covers all settings, the files of every package whose code computes or decides what leaves
        (`code`), the version of fedjax_core, and whether JAX computes in 64 bits. It does not cover the order
        in which a site takes its rows."""
        return identity(self._settings | {"fedjax_core": version(), "bits": bits()})

    @cached_property
    def code(self) -> dict[str, str]:
        """{package: digest of its files} of the packages that are in the hash."""
        return code_of(self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        settings = {
            name: getattr(self, name)
            for name in ("round", "batch_size", "epochs", "steps", "seed", "epsilon")
        }
        more = {
            "prepare": self.prepare,
            "departments": self.departments,
            "features": self.features,
            "held_out": self.held_out,
        }
        return settings | {name: value for name, value in more.items() if value}

    @property
    def measurable(self) -> bool:
        """Whether sites may report how much of an update's size the uplink keeps: not under noise."""
        return (
            self.round.uplink.measurable and self.round.uplink.promises.noise is None and self.epsilon is None
        )

    @cached_property
    def stats(self) -> tuple[str, ...]:
        """The fields that a site's policy must allow because the server reads them site by site.

        `stats.steps` if it reads each client's steps; `slot` if a report names the group or model that it is
        for."""
        slot = ("slot",) if self.round.slots > 1 else ()
        return (
            *slot,
            *sorted({f"stats.{name}" for report in reports_of(self.round) for name in report.stats}),
        )

    def plan(self, order: Order | None = None) -> Plan:
        """The plan of batches by which a client goes through its data."""
        return Plan(self.batch_size, self.epochs, self.steps, self.seed, order)


def version() -> str:
    """The version of fedjax_core that is installed here; empty in a checkout."""
    try:
        return importlib.metadata.version("fedjax-core")
    except importlib.metadata.PackageNotFoundError:
        return ""


def here() -> str:
    """This process's versions and width of numbers, which may change a study's hash, in words."""
    width = "64 bits (x64)" if bits() == 64 else "32 bits"
    return f"fedjax_core {version() or 'of a checkout'}, Python {platform.python_version()} and JAX {jax.__version__} in {width}"


def bits() -> int:
    """The width of JAX's numbers in bits: 64 with x64, else 32."""
    return 8 * jax.dtypes.canonicalize_dtype(float).itemsize


def build(name: str, arguments: Mapping[str, Any]) -> Study:
    """Builds a study with the installed function `module:function`; raises ValueError for other arguments."""
    function = named(name)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take the arguments {dict(arguments)}: {error}") from None
    study = function(**arguments)
    if not isinstance(study, Study):
        raise ValueError(f"{name} must return a fedjax_core.sites.study.Study, got {type(study).__name__}")
    return study


def is_function(name: str) -> bool:
    """Whether a name has the form `module:function`; a path may contain a colon too."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def named(name: str) -> Callable[..., Any]:
    """The installed function `module:function`, which must be written in that module's package."""
    module, _, function = name.partition(":")
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise ValueError(
            f"{name!r} is of Python's own library: name a function of the package that is installed for the study"
        )
    try:
        value = getattr(importlib.import_module(module), function, None) if module and function else None
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name!r} is not to be had: no module {error.name!r} here. Install it, or start where it lies"
        ) from error
    if not callable(value):
        raise ValueError(
            f"{name!r} names no function: write module:function, and install the module at the site"
        )
    inner = inspect.unwrap(value)
    if not inspect.isfunction(inner) or inner.__module__.partition(".")[0] != package:
        raise ValueError(
            f"{name!r} is no function that is written in {package!r}: name one that is, so that the site's staff can read it"
        )
    return value
