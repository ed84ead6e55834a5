"""`Federation`: runs a `Round` over real sites, whose data and client state stay with them.

    request ─transport─► Site.handle ─transport─► decode ─► replay? ─► validate ─► aggregate ─► conclude

It has the simulator's `init`, `run` and `fit`, and gives the same numbers when all sites report. An exchange
waits for its cohort until its deadline, or until nothing has come for `idle_seconds`; a site that was silent
once gets only a `grace` from then on. A reply is rejected, and recorded in the audit log, if it is late,
repeated, damaged or forged, if it belongs to another round, shape, configuration or data set, or if it is not
finite or out of bounds. The round goes on while the quorum holds, and the missing sites are named. Below the
quorum they are asked again; then `Paused` is raised, the state is unchanged, and `run` can be called again.
Reports are added in the order of the cohort, so the same set of sites gives the same bits in whatever order
they arrive.

The `State` holds all that crosses a round except the sites' client state, of which it holds the valid
version. So a coordinator that goes back to a checkpoint takes its sites back with it. A report counts once:
within a process, repeats are refused by their number; after a restart, a repeat can only be of the same
round, model and numbers.

>>> import numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.sites.site_file import SiteFile
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> data = {name: {"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.float32)} for name, n in (("charite", 3), ("mayo", 5))}
>>> sites = [SiteFile(name=name, data=columns) for name, columns in data.items()]
>>> with Federation(composed, sites, batch_size=2, transport="in-process") as federation:
...     state, metrics = federation.run(federation.init(jax.random.key(0)), [0, 1])
...     evaluation = federation.evaluate(state)
>>> int(state.round), float(metrics["examples"]), evaluation.sizes.tolist(), bool(evaluation.pooled["loss"] < 1.0)
(1, 8.0, [3, 5], True)
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys
from fedjax_core.buffer import Buffer
from fedjax_core.composition import check_population
from fedjax_core.constants import remembered
from fedjax_core.data.batches import Amount
from fedjax_core.data.cohort import as_cohort
from fedjax_core.data.preprocess import Fitted
from fedjax_core.evaluation import CrossEvaluation, Evaluation
from fedjax_core.one_by_one import one_by_one
from fedjax_core.round import Round, State
from fedjax_core.secure_aggregation.messages import MINIMUM
from fedjax_core.sites.audit import NOTHING, Log
from fedjax_core.sites.audit.coordinator_log import CoordinatorLog
from fedjax_core.sites.connecting import connect, counted, own_key
from fedjax_core.sites.coordinator import evaluation, pooling
from fedjax_core.sites.coordinator.absent import LackedRounds
from fedjax_core.sites.coordinator.asynchronous import AsynchronousRounds, check
from fedjax_core.sites.coordinator.collect import Collector, Paused
from fedjax_core.sites.coordinator.opened import Opened
from fedjax_core.sites.coordinator.population import Joining, Population, check_keys, describe
from fedjax_core.sites.coordinator.preprocessing import fit_preprocessing
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.coordinator.server import merged
from fedjax_core.sites.coordinator.statistics import collect_sums
from fedjax_core.sites.coordinator.synchronous import SynchronousRounds
from fedjax_core.sites.coordinator.synchronous import Versions as Versions
from fedjax_core.sites.protocol.request import Requests, RunContext, addresses
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import COORDINATOR
from fedjax_core.sites.wire.identity import PublicKey, Roster, SiteKey
from fedjax_core.sites.wire.transport import Transport
from fedjax_core.stats.base import Statistic, Sums
from fedjax_core.types import Key, Params

log = logging.getLogger("fedjax_core")

__all__ = ["Federation", "Paused", "Rules", "Versions"]

_ANY = 2**63 - 1
"""The limit on the number of examples of a site whose claim is trusted."""


@remembered(maxsize=16)
def _begin(composed: Round) -> Callable[..., State]:
    """The function that makes a federation's first state, compiled once for each `Round`."""
    return jax.jit(partial(composed.init, population=1))


class Federation:
    """Runs rounds of `composed` over sites. Use it in a `with`, or `close` it.

    `sites`: the `SiteFile` of each, or its path. `transport="ray"` starts a long-lived actor for each site by
    its name alone, so that it reads its own file on its own machine (`fedjax_core.sites.own_file`). Only
    without an `address` is a `SiteFile` made in Python handed over, with the study if it names none.
    "in-process" runs the sites in threads here; any other `Transport` is used as it is, with a `roster` of
    the sites' keys. `folder` keeps the coordinator's key, its audit log and the sites' descriptions.

    `epsilon`: the privacy loss of the whole run, as in the sites' own studies; clip and noise are those that
    the uplink promises. `prepare`: steps such as `[fc.preprocess.Standardise("x")]`, which every site applies
    to its own columns with parameters from the sums of all sites; these are asked for once, and kept in
    `folder`. `departments`: the clients are the departments of the sites (`SiteFile.departments`; a site
    without any is one client). Each site sends one mean of their reports, and the numbers are those of a
    simulator of all departments (sites/site/departments.py). `features`, such as `{"x": ["age", "weight"]}`:
    the order into which each site puts the named features of a column. `held_out`: the share, such as 0.2, of
    each site's examples that are kept for evaluation (`fedjax_core.sites.site.held_out`); without it,
    evaluation uses the training examples. `run_name` names the run in messages and in the sites' folders:
    another run begins anew there. With `fc.uplink.secure` in the uplink, the coordinator reads only the sum
    of the reports; that takes four more short stages, and drop-outs do not end it while enough sites stay
    (`fedjax_core.sites.coordinator.secure`). With a `buffer` it is asynchronous (FedBuff): a round is a
    server step from `buffer.size` reports, each site trains the newest model of the moment when it became
    free, and nobody waits for the slowest (`fedjax_core.sites.coordinator.asynchronous`)."""

    private = True
    """Files that `fit` writes about its runs are readable by their owner alone."""

    def __init__(
        self,
        composed: Round,
        sites: Sequence[SiteFile | str | Path],
        *,
        batch_size: int,
        epochs: Amount | None = None,
        steps: Amount | None = None,
        seed: int = 0,
        epsilon: float | None = None,
        prepare: Any = (),
        departments: bool = False,
        features: Mapping[str, Sequence[str]] | None = None,
        held_out: float = 0.0,
        buffer: Buffer | None = None,
        rules: Rules | None = None,
        folder: str | Path | None = None,
        run_name: str = "run",
        transport: Literal["ray", "in-process"] | Transport = "ray",
        roster: Roster | None = None,
        key: SiteKey | None = None,
        address: str | None = None,
        insecure_local: bool = False,
    ) -> None:
        if not isinstance(composed, Round):
            raise TypeError(
                f"Federation needs a Round, got {type(composed).__name__}: make one with fc.compose(algorithm)"
            )
        self.round = composed
        self.study = Study(
            composed, batch_size, epochs, steps, seed, epsilon, prepare, departments, features or {}, held_out
        )
        self.run_name = run_name
        files = [one if isinstance(one, SiteFile) else SiteFile.read(one) for one in sites]
        self._names = [one.name for one in files]
        if len(set(self._names)) != len(self._names) or not files:
            raise ValueError(f"a federation needs sites of different names, got {self._names}")
        check_population(composed, len(files), "sites")
        if composed.uplink.hides and len(files) < MINIMUM:
            raise ValueError(
                f"{composed.uplink.name} hides reports in their sum, and no site takes part in a sum of fewer than {MINIMUM}: of "
                f"{len(files)}, each could be told from the others"
            )
        self.buffer = buffer
        rules = self._checked(rules or Rules())
        self._folder = None if folder is None else Path(folder)
        self._exit = contextlib.ExitStack()
        try:
            self._key = own_key(self._folder) if key is None else key
            site_keys = self._connect(files, rules, transport, address=address, insecure_local=insecure_local)
            self._roster = roster or Roster(site_keys)
            check_keys(self._names, self._roster, self._transport)
            self._open_requests(rules)
            if transport == "in-process":
                agreed = counted(self._transport)
            elif transport == "ray" and address is None and roster is None:
                # On a Ray that this process started, it handed the sites' data over itself.
                agreed = dict.fromkeys(self._names, _ANY)
            else:
                agreed = {}
            self._describe_sites({**agreed, **self._roster.examples})
            self._rounds = self._make_rounds()
            self._lacked = LackedRounds()
            self.prepared = self._prepare()
            """The steps of `prepare` with the parameters from all sites, to `apply` to local data; None
            without steps."""
        except BaseException:
            self._exit.close()
            raise

    def _connect(
        self, files: list[SiteFile], rules: Rules, transport: Any, **reach: Any
    ) -> dict[str, PublicKey]:
        """Opens the audit log and the transport; the keys that the sites say are theirs."""
        self._log = (
            None if self._folder is None else self._exit.enter_context(Log(self._folder / "audit", self._key))
        )
        self._coordinator_log = CoordinatorLog(self._log, self.run_name)
        self._record = self._coordinator_log.record
        self._transport, site_keys = connect(
            files, self.study, self._key.public, transport, **reach,
            watched=rules.idle_seconds is not None, closing=self._exit,
        )  # fmt: skip
        self._exit.callback(self._transport.close)
        return site_keys

    def _open_requests(self, rules: Rules) -> None:
        """Makes what writes requests, with the head of the audit log in each, and what collects replies."""
        self._requests = Requests(
            self.run_name, self.study.hash, addresses(self._names), self._key, self._record
        )
        if (log := self._log) is not None:
            self._requests.head = lambda: None if log.durable == NOTHING else str(log.durable)
        self._collector = Collector(
            self._requests, self._names, self._transport, self._roster, rules, self._record
        )
        self._coordinator_log.latest_head = lambda site: self._collector.replies.heads.get(site, (0, None))

    def _describe_sites(self, agreed: Mapping[str, int]) -> None:
        """Asks each site what it has, of which no more than was `agreed`, and lets absent ones join later."""
        path = None if self._folder is None else self._folder / f"{self.run_name}-sites.json"
        departments, held_out = self.study.departments, self.study.held_out
        ends = self._collector, self._requests
        descriptions = describe(*ends, path, departments, held_out, agreed=agreed, record=self._record)
        self.clients = Population(self._names, descriptions, departments)
        self._joining = Joining(
            *ends, self.clients, descriptions, path, departments, held_out, agreed, self._record
        )
        self._collector.know(self.clients.sizes, self.clients.clients, self.study.plan())

    def _make_rounds(self) -> AsynchronousRounds | SynchronousRounds:
        """The rounds of this federation: with a buffer asynchronous, else synchronous."""
        by_departments = self.study.departments and not self.round.uplink.hides
        here = merged(self.round) if by_departments else self.round
        ends: dict[str, Any] = {
            "requests": self._requests,
            "collector": self._collector,
            "data": self.clients.data,
        }
        if self.buffer is not None:
            return AsynchronousRounds(here, self.buffer, **ends, record=self._record)
        opened = Opened(None if self._folder is None else self._folder / f"{self.run_name}-opened.json")
        return SynchronousRounds(here, **ends, roster=self._roster, opened=opened, record=self._record)

    def __repr__(self) -> str:
        return (
            f"Federation({self.round}, {len(self._names)} sites: {listed(self._names)}; {self.study.plan()})"
        )

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Releases the sites, and closes the audit log."""
        self._exit.close()

    @property
    def rules(self) -> Rules:
        """The `Rules` of deadlines and quorum; they may be set between rounds.

        Raises ValueError for `idle_seconds` if the federation began without it: its sites over Ray cannot
        report their progress.
        """
        return self._collector.rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        if rules.idle_seconds is not None and not getattr(self._transport, "watched", True):
            raise ValueError(
                f"idle_seconds is {rules.idle_seconds:g}, and this federation began without: its sites cannot be asked how far they are "
                "while they work, and would be given up at long work; make it with rules=Rules(idle_seconds=...)"
            )
        self._collector.rules = self._checked(rules)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that can change the result's bits, apart from the `Round`, the data, and which sites
        counted in each round."""
        study = self.study
        plain = {
            "batch_size": study.batch_size,
            "epochs": study.epochs,
            "steps": study.steps,
            "seed": study.seed,
        }
        more: dict[str, Any] = {
            "prepared": self.prepared,
            "buffer": self.buffer,
            "departments": study.departments or None,
        }
        more |= {"features": study.features or None, "held_out": study.held_out or None}
        return plain | {name: value for name, value in more.items() if value is not None}

    @property
    def judged_on(self) -> Literal["held-out", "trained on"]:
        """The part of the sites' examples on which models are evaluated."""
        return "held-out" if self.study.held_out else "trained on"

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round, from `params`, or else from the task's own `init(key)`."""
        keys.check(key)
        params = None if params is None else jax.tree.map(jnp.asarray, params)
        state = _begin(self.round)(key, params=params)
        self._requests.first = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
        return self._rounds.init(state)

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """Runs one round with the sites at these positions: (state, metrics that add).

        Raises `Paused` if too few report.

        A missing site is logged once for as long as it is missing; `lacked` names it for each round.
        """
        number = int(state.round)
        self._joining.look(number)
        after = self._rounds.run(state, cohort)
        self._lacked.tell(number, self._rounds.lacked)
        return after

    def run_many(
        self, state: State, cohorts: Sequence[Any], *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Runs rounds one after another: (state, metrics with leaves [R])."""
        return one_by_one(self.run, state, cohorts, donate=donate)

    def evaluate(self, state: State, clients: Any = None) -> Evaluation:
        """Evaluates the model, or each site's personalised model, at every site on the site's own examples.

        The examples are those held out, or the training examples if the study holds none out: `Evaluation.on`
        says which. A metric is pooled over the sites that report it; `Evaluation.without` names the others,
        with reasons."""
        if clients is not None:
            raise ValueError(
                "a federation evaluates at its sites; for data at hand use fc.evaluate(task, state.params, clients)"
            )
        believed, reasons = self._ask(state, list(range(len(self.clients))))
        return pooling.evaluation(self._names, believed, reasons, self.judged_on)

    def score(self, state: State, clients: Any) -> dict[str, np.ndarray]:
        """{metric: [n]} of the sites at these positions [n], for a sampler that chooses by metrics.

        Only these sites are asked, and they use the same examples as in `evaluate`. The value of a site is
        NaN if it does not answer, does not report the metric, or is not believed.
        """
        positions = as_cohort(clients, len(self.clients)).clients.tolist()
        believed, reasons = self._ask(state, positions)
        metrics = pooling.evaluation(self._names, believed, reasons, self.judged_on).clients
        return {
            name: np.array(
                [np.nan if (position, name) in believed.doubts else x[position] for position in positions]
            )
            for name, x in metrics.items()
        }

    def _ask(self, state: State, positions: list[int]) -> tuple[pooling.Believed, dict[int, str]]:
        """(the metrics that these sites report of the state's model, the reasons of those that report
        none)."""
        context = RunContext(state, self._rounds.versions(state))
        return evaluation.ask(
            self.round.algorithm,
            context,
            positions,
            self._requests,
            self._collector,
            self.clients,
            record=self._record,
        )

    def cross_evaluate(self, models: Mapping[str, Params], *, round: int = 0) -> CrossEvaluation:
        """Evaluates every model ({name: params}) at every site; a site without an answer is a gap.

        The examples are those of `evaluate`. `round` is the number that messages and audit logs carry.
        """
        like = jax.eval_shape(self.round.algorithm.task.init, keys.shape())
        return evaluation.cross_evaluate(
            models, like, round, self._requests, self._collector, self.clients.judged,
            ranges=self.round.algorithm.task.ranges, withheld=self.clients.withheld, record=self._record,
        )  # fmt: skip

    def statistic(self, statistic: Statistic) -> list[Sums]:
        """The sums of a statistic at every site, in order, for `fc.stats`. Raises `Paused` if one is
        missing."""
        return collect_sums(statistic, self._collector, self._requests, self._record)

    @property
    def site_names(self) -> list[str]:
        """The names of the sites, in their order."""
        return list(self._names)

    def needs(self, state: State) -> dict[str, Any]:
        """The client state that sites must keep for a resume from this state, as plain values."""
        return self._rounds.needs(state)

    def retain(self, needs: Sequence[Mapping[str, Any]] | None) -> None:
        """Lets sites forget all client state that neither these `needs` nor the present state require.

        `fc.fit` calls it with every checkpoint. None: the run may go on from other states too, so sites also
        keep their last versions (`request.RECENT`)."""
        self._requests.recovery.retain(needs)

    def lacked(self, round: int) -> dict[str, str]:
        """{site: reason} of the sites missing in this round, numbered from 1 as in `fit`'s records.

        Kept for the last thousand rounds of this process.
        """
        return self._lacked.of(round - 1)

    def note(self, what: str, round: int, details: Mapping[str, Scalar]) -> None:
        """Records what happens to a run between rounds in the coordinator's audit log, if there is one."""
        self._record(COORDINATOR, what, round, details)

    def _checked(self, rules: Rules) -> Rules:
        if self.buffer is not None:
            check(self.round, self.buffer, len(self._names), rules)
        if self.study.departments and rules.train_seconds is not None:
            raise ValueError(
                f"Rules(train_seconds={rules.train_seconds:g}) cannot be kept with departments=True: these train side by side, each to "
                "its end; leave one of them out"
            )
        return rules

    def _prepare(self) -> Fitted | None:
        if not self.study.prepare:
            return None
        path = None if self._folder is None else self._folder / f"{self.run_name}-prepared.json"
        fitted = fit_preprocessing(
            self.study.prepare, self._collector, self._requests, self._record, path, self.clients.features
        )
        self._requests.prepared = fitted.parameters
        return fitted
