"""`Federation`: a `Round` over real sites, which keep their data and what they keep between rounds.

    request  ─transport─►  Site.handle  ─transport─►  decode ─► guard ─► gate ─► receive ─► aggregate ─► conclude

The same `init`, `run` and `fit` as the simulator, and with all sites the same numbers. Time has one rule: an
exchange waits for its cohort until nothing has come for `idle_seconds`, or until its deadline; a site that
was silent is waited for a `grace` from then on. What is late, repeated, damaged, forged, of another round,
shape, configuration or data set, not finite or out of bounds is set aside, recorded in the audit log, and the
round goes on while the quorum holds; who lacked is said by name. Below it those who are missing are asked
again, and then `Paused` is raised: the state is what it was, and `run` can be called again.
Reports meet in the order of the cohort, so the same set of sites gives the same bits, whoever came first.

The `State` holds all that crosses a round but what sites keep; of that it has the version that counted, so a
coordinator that falls back to a checkpoint takes its sites back with it. A site's report counts once: repeats
within a process are refused by their number, and after a restart a repeat could only be of the same round,
model and numbers.

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
from fedjax_core.sites.wire.identity import Roster, SiteKey
from fedjax_core.sites.wire.transport import Transport
from fedjax_core.stats.base import Statistic, Sums
from fedjax_core.types import Key, Params

log = logging.getLogger("fedjax_core")

__all__ = ["Federation", "Paused", "Rules", "Versions"]

_ANY = 2**63 - 1
"""Examples, of a site whose number is not doubted."""


@remembered(maxsize=16)
def _begin(composed: Round) -> Callable[..., State]:
    """The state that a federation begins with, compiled once for each round."""
    return jax.jit(partial(composed.init, population=1))


class Federation:
    """Runs rounds of `composed` over sites. Use it in a `with`, or `close` it.

    `sites`: a `SiteFile` (or the path of one) each. `transport="ray"` starts a long-lived actor for each: by
    its name alone, so that it reads its own file on its own machine (`fedjax_core.sites.own_file`); only a
    `SiteFile` made in Python is handed over, with the study where it names none, and only where no `address`
    is given. "in-process" has them in threads here; any other `Transport` is used as it is, with a `roster`
    of the sites' keys. `folder` keeps the coordinator's key, its audit log and what sites said of themselves.

    `epsilon`: what the whole run may tell, as the sites' own studies say it. Clip and noise are those that
    the uplink promises. `prepare`: steps such as `[fc.preprocess.Standardise("x")]`, which every site applies
    to its own columns, with numbers from sums of all sites' columns, asked for once; they are in `folder`,
    too.
    `departments`: the clients are the departments into which sites divide their examples
    (`SiteFile.departments`), a site without any is one; each site sends one mean of their reports, and the
    numbers are those of a simulator of them all (sites/site/departments.py). `features`, as in `{"x": ["age",
    "weight"]}`: the order into which each site brings the features of a column, by their names. `held_out`: a
    share, such as 0.2, of each site's examples that are not trained on, and on which every evaluation is
    (`fedjax_core.sites.site.held_out`); without, evaluation is on what was trained on. `run_name` names the
    run in messages and in the sites' folders: another run begins anew there. Where the uplink has
    `fc.uplink.secure`, the coordinator reads the sum of the reports and no report: over four short stages
    more, which drop-outs at any stage do not end while enough sites stay
    (`fedjax_core.sites.coordinator.secure`). With a `buffer` it is asynchronous (FedBuff): a round is a step
    of the server from `buffer.size` reports, each site works on the newest model there was when it was free,
    and nobody waits for the slowest (`fedjax_core.sites.coordinator.asynchronous`)."""

    private = True
    """What `fit` writes of its runs is for its owner alone."""

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
        self._exit = contextlib.ExitStack()
        try:
            self._folder = None if folder is None else Path(folder)
            self._key = own_key(self._folder) if key is None else key
            audited = (
                None
                if self._folder is None
                else self._exit.enter_context(Log(self._folder / "audit", self._key))
            )
            written = CoordinatorLog(audited, run_name)
            self._record = written.record
            self._transport, site_keys = connect(
                files, self.study, self._key.public, transport, address=address, insecure_local=insecure_local,
                watched=rules.idle_seconds is not None, closing=self._exit,
            )  # fmt: skip
            self._exit.callback(self._transport.close)
            self._roster = roster or Roster(site_keys)
            check_keys(self._names, self._roster, self._transport)
            self._requests = Requests(
                run_name, self.study.hash, addresses(self._names), self._key, self._record
            )
            if audited is not None:
                self._requests.head = lambda: None if audited.durable == NOTHING else str(audited.durable)
            self._collector = Collector(
                self._requests, self._names, self._transport, self._roster, rules, self._record
            )
            written.latest_head = lambda site: self._collector.replies.heads.get(site, (0, None))
            path = None if self._folder is None else self._folder / f"{run_name}-sites.json"
            # On a Ray that this process started, it handed the sites' data over itself.
            try_on_ray = transport == "ray" and address is None and roster is None
            agreed = (
                counted(self._transport)
                if transport == "in-process"
                else dict.fromkeys(self._names, _ANY)
                if try_on_ray
                else {}
            )
            agreed |= self._roster.examples
            descriptions = describe(
                self._collector,
                self._requests,
                path,
                departments,
                held_out,
                agreed=agreed,
                record=self._record,
            )
            self.clients = Population(self._names, descriptions, departments)
            self._joining = Joining(
                self._collector,
                self._requests,
                self.clients,
                descriptions,
                path,
                departments,
                held_out,
                agreed,
                self._record,
            )
            self._collector.know(self.clients.sizes, self.clients.clients, self.study.plan())
            here = merged(composed) if departments and not composed.uplink.hides else composed
            ends: dict[str, Any] = {
                "requests": self._requests,
                "collector": self._collector,
                "data": self.clients.data,
            }
            self._rounds: AsynchronousRounds | SynchronousRounds
            if buffer is None:
                opened = Opened(None if self._folder is None else self._folder / f"{run_name}-opened.json")
                self._rounds = SynchronousRounds(
                    here, **ends, roster=self._roster, opened=opened, record=self._record
                )
            else:
                self._rounds = AsynchronousRounds(here, buffer, **ends, record=self._record)
            self._lacked = LackedRounds()
            self.prepared = self._prepare()
            """The steps of `prepare` with the numbers of all sites, to `apply` to data at hand; None without
            steps."""
        except BaseException:
            self._exit.close()
            raise

    def __repr__(self) -> str:
        return (
            f"Federation({self.round}, {len(self._names)} sites: {listed(self._names)}; {self.study.plan()})"
        )

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets the sites go, and closes the audit log."""
        self._exit.close()

    @property
    def rules(self) -> Rules:
        """How long an exchange waits, and for how many; may be set between rounds.

        Raises ValueError for `idle_seconds` where sites over Ray cannot be asked for their progress: those of
        a federation that began without.
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
        """All that changes the answer, to the last bit, besides the `Round`, the data, and what counted by
        the `rules` of each round."""
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
        """On which of the sites' examples a model is evaluated."""
        return "held-out" if self.study.held_out else "trained on"

    def init(self, key: Key, params: Params | None = None) -> State:
        """The state before the first round; from `params` where given, else as the task begins from `key`."""
        params = None if params is None else jax.tree.map(jnp.asarray, params)
        state = _begin(self.round)(key, params=params)
        self._requests.first = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
        return self._rounds.init(state)

    def run(self, state: State, cohort: Any, *, donate: bool = False) -> tuple[State, dict[str, Any]]:
        """One round with the sites at these positions: (state, metrics that add). Raises `Paused` where too
        few report.

        Who of them was not in it is said once, for as long as it lasts, and `lacked` tells it of each round.
        """
        number = int(state.round)
        self._joining.look(number)
        after = self._rounds.run(state, cohort)
        self._lacked.tell(number, self._rounds.lacked)
        return after

    def run_many(
        self, state: State, cohorts: Sequence[Any], *, donate: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """Rounds one after another: (state, metrics with leaves [R])."""
        return one_by_one(self.run, state, cohorts, donate=donate)

    def evaluate(self, state: State, clients: Any = None) -> Evaluation:
        """The model on every site's examples, counted there; where sites keep a model of their own, each on
        its own.

        The examples are those held out, or those trained on where the study holds nobody out: `Evaluation.on`
        says which. A metric is pooled over the sites that tell it; `Evaluation.without` names the others, and
        why."""
        if clients is not None:
            raise ValueError(
                "a federation evaluates at its sites; for data at hand use fc.evaluate(task, state.params, clients)"
            )
        believed, reasons = self._ask(state, list(range(len(self.clients))))
        return pooling.evaluation(self._names, believed, reasons, self.judged_on)

    def score(self, state: State, clients: Any) -> dict[str, np.ndarray]:
        """Each metric of the sites at these positions [n], {name: [n]}, for a sampler that chooses by them.

        Only these sites are asked, for the examples that `evaluate` goes by. NaN where one does not answer,
        does not tell it, or is not believed.
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
        """(what these sites tell of the state's model, why others of them do not)."""
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
        """Every model ({name: params}) on every site's examples, counted there; sites that do not answer are
        holes with their reason.

        The examples are those held out, or those trained on where the study holds nobody out.
        `round` is the one under which messages and audit logs have it.
        """
        like = jax.eval_shape(self.round.algorithm.task.init, keys.shape())
        return evaluation.cross_evaluate(
            models, like, round, self._requests, self._collector, self.clients.judged,
            ranges=self.round.algorithm.task.ranges, withheld=self.clients.withheld, record=self._record,
        )  # fmt: skip

    def statistic(self, statistic: Statistic) -> list[Sums]:
        """The sums of a statistic at every site, in their order, for `fc.stats`. Raises `Paused` where a site
        does not tell them."""
        return collect_sums(statistic, self._collector, self._requests, self._record)

    @property
    def site_names(self) -> list[str]:
        """The names of the sites, in their order."""
        return list(self._names)

    def needs(self, state: State) -> dict[str, Any]:
        """What sites must still have for the run to go on from this state; plain values, for its
        checkpoint."""
        return self._rounds.needs(state)

    def retain(self, needs: Sequence[Mapping[str, Any]] | None) -> None:
        """From now on the run goes on only from states that have these `needs`, or from the one at hand:
        sites forget the rest.

        `fc.fit` says so with every checkpoint. None: from others too, so that sites keep their last versions
        (`request.RECENT`) as well."""
        self._requests.recovery.retain(needs)

    def lacked(self, round: int) -> dict[str, str]:
        """{site: why} of those who were asked to be in this round, numbered from 1 as in `fit`'s records, and
        were not.

        It is known of the last thousand rounds of this process.
        """
        return self._lacked.of(round - 1)

    def note(self, what: str, round: int, details: Mapping[str, Scalar]) -> None:
        """Into the coordinator's audit log, where there is one: what becomes of a run between rounds."""
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
