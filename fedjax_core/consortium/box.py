"""`run`: runs a coordinator and its sites on this machine, from an empty folder to a table of results; called
again, it resumes.

    prepare ─► Ray nodes ─► coordinator ─► rounds ... ─► table ─► audit logs verified ─► stopped

A site's node or a coordinator that is killed is started again. A round waits for all sites, so the run ends
bit for bit where it would have ended. With a smaller `quorum` rounds go on without an absent site: this is
printed, and the numbers differ. When the coordinator's node is lost, so is all of Ray: everything stops, and
the same call goes on from the last checkpoint.

>>> run("runs/consortium", sites=3, rounds=20)  # doctest: +SKIP
"""

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from fedjax_core.consortium.lead import SAYS
from fedjax_core.consortium.processes import HEAD, LEAD, Failed, Process, Processes
from fedjax_core.consortium.setup import Layout, StudyPlan, prepare
from fedjax_core.run.log import without
from fedjax_core.sites import audit
from fedjax_core.sites.site.preprocessing import held_back
from fedjax_core.sites.study import build
from fedjax_core.sites.transport import certificates
from fedjax_core.sites.wire import identity
from fedjax_core.sites.wire.envelope import COORDINATOR

_POLL_SECONDS, _SAVE_SECONDS, _TRIES = 0.2, 60.0, 5

_RANGE = " (a range is of single persons: its smallest and largest value)"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    rounds: int
    sites: dict[str, dict[str, float]]
    """Each site's number of `examples`, and its metrics on them."""
    pooled: dict[str, float]
    heads: dict[str, audit.Head]
    """The head of each verified audit log, to be given to somebody else."""
    restarts: dict[str, int]
    """The number of restarts of each process."""
    on: str = "trained on"
    """The examples behind the metrics: "held-out", or "trained on"."""
    took_part: dict[str, int] = field(default_factory=dict)
    """The number of rounds in which each site took part."""


def run(
    folder: str | Path,
    *,
    sites: int | None = None,
    site_files: str | Path | None = None,
    study: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    rounds: int | None = None,
    quorum: int | None = None,
    train_seconds: float | None = None,
    checkpoint_every: int | None = None,
    say: Say = print,
    lead: str = "fedjax_core.consortium.lead",
) -> Result:
    """Runs a consortium in `folder`, which is created if needed; the module `setup` says what is in it.

    `sites` made-up hospitals (3), or those in `site_files`, a folder of TOML files with `name` and `data`
    each, for which `study` is needed: "module:function". Raises `Failed` where a process cannot go on, and
    KeyboardInterrupt on Ctrl-C, once all is stopped."""
    where = Layout(Path(folder).absolute())
    own = None if site_files is None else Path(site_files)
    plan, new = prepare(
        where,
        sites=sites,
        site_files=own,
        study=study,
        arguments=arguments,
        rounds=rounds,
        quorum=quorum,
        train_seconds=train_seconds,
        checkpoint_every=checkpoint_every,
    )
    until = certificates.describe(where.coordinator / "ray" / "node.crt").rpartition("until ")[2]
    say(f"{folder}: a coordinator and {len(plan.sites)} sites, on loopback, with TLS and a token")
    made = "keys made at each site, a roster of them, certificates" if new else "as it was left; certificates"
    say(f"  folder    {made} until {until}")
    built = build(plan.study, json.loads(plan.arguments))
    if sums := held_back(built.prepare, ()):
        listing = "; ".join(f"{kind} for {steps}" for kind, steps in sums.items())
        say(
            f"  leaving   once, as the policies let it, sums of columns: {listing}{_RANGE if 'range' in sums else ''}"
        )
    began = time.monotonic()
    with Processes(where, lead) as processes:
        processes.start_nodes(plan.sites)
        say(
            f"  started   {1 + len(plan.sites)} Ray nodes, in {time.monotonic() - began:.1f} s: the coordinator's, and one for each site"
        )
        restarts = _Watch(
            where, plan, processes, say, "departments" if built.departments else "sites"
        ).until_done()
    heads = verify(where, plan)
    entries = ", ".join(f"{name} {head.n + 1}" for name, head in heads.items())
    say(f"  stopped   everything; all audit logs are as they were written ({entries} entries)")
    return _result(where, plan, heads, restarts)


def verify(folder: Layout, plan: StudyPlan) -> dict[str, audit.Head]:
    """The head of every audit log, all verified; raises `AuditError` with the first that is not as it was
    written.

    Sites' logs are also verified by the heads that the coordinator holds of them, and its log by those that
    they hold."""
    everyone = (COORDINATOR, *plan.sites)
    logs = {
        name: (folder.home(name) if name == COORDINATOR else folder.home(name) / "state") / "audit"
        for name in everyone
    }
    keys = {name: [identity.read_public(folder.home(name) / f"{name}.pub")[1]] for name in everyone}
    heads = {}
    for name in everyone:
        others = plan.sites if name == COORDINATOR else (COORDINATOR,)
        held = {other: audit.held_by(logs[other], keys[other], name) for other in others}
        heads[name] = audit.verify(logs[name], keys[name], held=held)
    return heads


def table(result: Result) -> Table:
    """The model's metrics at every site, on the examples that it trained on there, or on those held out."""
    names = list(result.pooled)
    rendered = Table(
        title=f"after {result.rounds} rounds, on what each site {'held out' if result.on == 'held-out' else 'trained on'}"
    )
    for name in ("site", "rounds", "examples", *names):
        rendered.add_column(name, justify="left" if name == "site" else "right")
    for site, values in result.sites.items():
        rounds = f"{result.took_part.get(site, result.rounds)} of {result.rounds}"
        shown = ("-" if math.isnan(values[name]) else f"{values[name]:.4f}" for name in names)
        rendered.add_row(site, rounds, f"{values['examples']:.0f}", *shown)
    total = sum(values["examples"] for values in result.sites.values())
    rendered.add_row(
        "all together",
        str(result.rounds),
        f"{total:.0f}",
        *(f"{result.pooled[name]:.4f}" for name in names),
        style="bold",
    )
    return rendered


class _Watch:
    """Watches the coordinator and the nodes until the rounds are done."""

    def __init__(self, folder: Layout, plan: StudyPlan, processes: Processes, say: Say, clients: str) -> None:
        """`clients`: what the study's clients are."""
        self._clients = clients
        self.folder, self.plan, self.processes, self.say = folder, plan, processes, say
        self.restarts: dict[str, int] = {}
        self._shown = len(folder.rounds())
        self._every = max(1, plan.rounds // 10)
        self._lost: float | None = None  # when a process was lost
        self._lacked = ""  # the sites missing in the last round shown
        self._named_folder = False
        self._log = folder.root / "logs" / f"{LEAD}.log"
        self._offset = self._log.stat().st_size if self._log.exists() else 0  # bytes read of it

    def until_done(self) -> dict[str, int]:
        """Watches until the rounds are done; returns the number of restarts of each process."""
        if self._shown >= self.plan.rounds:
            self.say(f"  done      all {self.plan.rounds} rounds, before now; --rounds asks for more")
        elif self._shown:
            self.say(f"  resuming  after round {self._shown}, or the checkpoint before it")
        try:
            self.processes.lead()
            while (code := self.processes.parts[LEAD].process.poll()) != 0:
                self._show()
                if code is not None:
                    self._again(self.processes.parts[LEAD], code)
                for part in list(self.processes.parts.values()):
                    if part.name != LEAD and (code := part.process.poll()) is not None:
                        self._again(part, code)
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            self._save()
            raise
        self._show()
        return self.restarts

    def _again(self, part: Process, code: int) -> None:
        """Restarts a process that was killed; raises where it failed by itself."""
        times = self.restarts[part.name] = self.restarts.get(part.name, 0) + 1
        if part.name == HEAD:
            raise Failed(
                "the coordinator's Ray node ended, and Ray with it. Run the same command again: it goes on from the last checkpoint."
            )
        if times > _TRIES or (part.name == LEAD and code > 0):
            raise Failed(f"{part.name} ended with {part.ended}:\n{part.last_words()}\n({part.log} says more)")
        self._lost = time.monotonic()
        what = "coordinator" if part.name == LEAD else f"Ray node of {part.name}"
        self.say(f"  lost      the {what} ({part.ended}); starting it again")
        if part.name == LEAD:
            self.processes.lead()
        else:
            self.processes.site_node(part.name)

    def _relay(self) -> None:
        """Prints the coordinator's messages to people."""
        if not self._log.exists():
            return
        with open(self._log, "rb") as file:
            file.seek(self._offset)
            chunk = file.read()
        chunk = chunk[: chunk.rfind(b"\n") + 1]  # whole lines
        self._offset += len(chunk)
        for line in chunk.splitlines():
            if line.startswith(SAYS.encode()):
                text = line.decode(errors="replace").removeprefix(SAYS).strip()
                self.say(f"  note      {text}")
                if "errors.log" in text and not self._named_folder:
                    self.say(f"  note      errors.log of a site is in {self.folder.site('NAME') / 'state'}")
                    self._named_folder = True

    def _show(self) -> None:
        self._relay()
        for record in self.folder.rounds()[self._shown :]:
            self._shown = number = record["round"]
            if self._lost is not None:
                self.say(f"  going on  {time.monotonic() - self._lost:.1f} s later, with round {number}")
                self._lost = None
            lacked, before, self._lacked = record.get("lacked", ""), self._lacked, record.get("lacked", "")
            if number % self._every == 0 or number in (1, self.plan.rounds) or lacked != before:
                loss = f"loss {record['loss']:.4f}, " if "loss" in record else ""
                participants = f"{record['clients']:.0f} {self._clients}{without(lacked.split())}"
                self.say(f"  round     {number} of {self.plan.rounds}: {loss}{participants}")

    def _save(self) -> None:
        """Has the coordinator finish its round and save."""
        self.say("  stopping  once the round under way is done and saved (Ctrl-C again: at once)")
        lead = self.processes.parts.get(LEAD)
        if lead is not None and (process := lead.process).poll() is None:
            process.send_signal(signal.SIGINT)
            until = time.monotonic() + _SAVE_SECONDS
            while process.poll() is None and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)


def _result(
    folder: Layout, plan: StudyPlan, heads: dict[str, audit.Head], restarts: dict[str, int]
) -> Result:
    result = json.loads((folder.coordinator / "result.json").read_text())
    metrics = {name: dict(zip(plan.sites, values, strict=True)) for name, values in result["sites"].items()}
    sizes = dict(zip(plan.sites, result["sizes"], strict=True))
    each = {
        site: {"examples": float(sizes[site]), **{name: values[site] for name, values in metrics.items()}}
        for site in plan.sites
    }
    lacked = [name for record in folder.rounds() for name in record.get("lacked", "").split()]
    took_part = {site: result["rounds"] - lacked.count(site) for site in plan.sites}
    return Result(
        result["rounds"], each, result["pooled"], heads, restarts, result.get("on", "trained on"), took_part
    )
