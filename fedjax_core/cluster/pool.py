"""The driver's side of Ray workers: replaces a worker that dies or hangs, and has others repeat its work.

A share is a pure function of its inputs, so it comes out the same on any worker and however often it is run.
A share that keeps killing its workers ends in an error. Tasks and results are pickled by Ray, and anyone who
reaches a Ray cluster can run code in it: a cluster is one trust domain. What is started here has no dashboard
and sends no usage statistics; Ray from 2.60 on guards it by a token."""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.cluster.schedule import assign_to_workers
from fedjax_core.cluster.shard import Broadcast, Shard, ShardResult, in_pairs
from fedjax_core.cluster.source import Folder, Sent
from fedjax_core.data.batches import Plan
from fedjax_core.round import Round

try:
    import ray
    from ray import exceptions as failures
except ImportError as error:
    raise ImportError(
        "ClusterSimulator needs Ray, which is not installed: pip install 'fedjax-core[cluster]'"
    ) from error

from fedjax_core.cluster.actor import Actor, Setup
from fedjax_core.cluster.connection import connections

log = logging.getLogger("fedjax_core")

connect, disconnect = connections.open, connections.close

START_SECONDS = 120.0  # an actor takes one to ten, mostly to import JAX

# Settings that workers take over, so that they compute as this process does.
_NUMERICS = (
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
# The cache of compiled programs: shared with workers of this machine only, as another kind of processor may
# not be able to run them.
_CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


class WorkerHandle:
    """A worker, as the driver sees it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.ready = actor.about.remote()
        self.about: dict[str, Any] = {}
        self.speed = math.nan  # local steps a second
        self.since = math.nan  # when it last finished a share, or was given one while idle

    def record_speed(self, done: ShardResult) -> None:
        """Updates the estimated speed by a completed share: the last few count most."""
        if not done.compiled and done.work.steps:
            pace = done.work.steps / done.seconds
            self.speed = pace if math.isnan(self.speed) else 0.7 * self.speed + 0.3 * pace

    def decay_speed(self, best: float) -> None:
        """Drifts an idle worker's estimated speed towards the best one's, so that a worker once measured slow
        is tried again."""
        self.speed += 0.2 * max(0.0, best - self.speed)

    def __str__(self) -> str:
        return f"worker {self.about.get('pid', '(starting)')} on node {str(self.about.get('node', '?'))[:8]}"


class Completed(NamedTuple):
    """A completed share."""

    done: ShardResult
    acc: Any  # Ray's reference to its accumulator, if that was not sent along
    member: WorkerHandle


class WorkerPool:
    """The workers of one simulator: a fixed number; those that die are replaced."""

    def __init__(
        self,
        composed: Round,
        plan: Plan,
        source: Sent | Folder,
        *,
        workers: int,
        streamed: bool,
        cpus: float,
        gpus: float,
        retries: int,
        hang_seconds: float,
    ) -> None:
        self.cpus, self.gpus, self.retries, self.hang_seconds = cpus, gpus, retries, hang_seconds
        if gpus and jax.default_backend() != "cpu":
            log.warning(
                "this process holds memory of a GPU that a worker may be given: start it with JAX_PLATFORMS=cpu to leave GPUs to workers"
            )
        settings = {
            name: jax.config.values[name] for name in _NUMERICS + (_CACHE if connections.started else ())
        }
        self._setup = ray.put(Setup(_pickled(composed, plan), source, streamed, settings, _path()))
        self._class = ray.remote(Actor).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": self._environment()},
        )
        self.members: list[WorkerHandle] = []
        self._coming: list[WorkerHandle] = []
        self.deaths = 0
        """The number of workers that died so far."""
        self.size = 0
        self.resize(workers)

    def resize(self, workers: int) -> None:
        """Sets the number of workers, and returns when all are ready."""
        have = ray.cluster_resources()
        for what, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if workers * each > have.get(what, 0) + 1e-6:
                raise ValueError(
                    f"{workers} workers of {each:g} {what} each need {workers * each:g}, but the cluster has {have.get(what, 0):g}: "
                    f"use fewer workers, or {what.lower()}s_per_worker= of at most {have.get(what, 0) / workers:g}"
                )
        more = max(0, workers - len(self.members))  # workers still to come
        for leaving in self.members[workers:] + self._coming[more:]:
            _kill(leaving)
        self.members, self._coming, self.size = self.members[:workers], self._coming[:more], workers
        self._fill()
        while self._coming:
            self._add_ready(wait=True)

    @property
    def nodes(self) -> int:
        """The number of nodes that the workers are on."""
        return len({member.about["node"] for member in self.members})

    def put(self, broadcast: Broadcast) -> Any:
        """The broadcast in Ray's store: it crosses to each node once."""
        return ray.put(broadcast)

    def run(self, broadcast: Any, shares: list[Shard], loads: list[float]) -> list[ShardResult]:
        """The results of all shares, in the order given."""
        return [
            came.done
            for came in self._run_all(
                lambda actor, share: (actor.run.remote(broadcast, share), None), shares, loads
            )
        ]

    def run_and_merge(
        self, broadcast: Any, shares: list[Shard], loads: list[float]
    ) -> tuple[list[ShardResult], Any]:
        """(the results of all shares without accumulators, the merged accumulator). Workers merge, and only
        the merged one is sent here.

        If one is lost on the way, all shares are run again and send theirs along; the second value is then
        None."""
        completed = self._run_all(
            lambda actor, share: actor.run_keeping_accumulator.options(num_returns=2).remote(
                broadcast, share
            ),
            shares,
            loads,
        )
        try:
            return [came.done for came in completed], self._merged(
                [(came.acc, came.member) for came in completed]
            )
        except (failures.RayError, TimeoutError) as error:
            log.warning(
                "what workers had added up is lost, and all shares are done again: %s", _last_line(error)
            )
        return self.run(broadcast, shares, loads), None

    def _merged(self, level: list[tuple[Any, WorkerHandle]]) -> Any:
        """Merges accumulators on the workers, in pairs, at the worker that has the first of each pair."""

        def merge(a: tuple[Any, WorkerHandle], b: tuple[Any, WorkerHandle]) -> tuple[Any, WorkerHandle]:
            return a[1].actor.merge.remote(a[0], b[0]), a[1]

        return ray.get(
            in_pairs(merge, level)[0], timeout=None if math.isinf(self.hang_seconds) else self.hang_seconds
        )

    def _run_all(
        self, begin: Callable[[Any, Shard], tuple[Any, Any]], shares: list[Shard], loads: list[float]
    ) -> list[Completed]:
        """Every completed share, in the order given; `begin` starts one and returns Ray's references to its
        result and its accumulator."""
        done: dict[int, Completed] = {}
        waiting: dict[Any, tuple[int, WorkerHandle]] = {}
        apart: dict[Any, Any] = {}
        tries, todo = [0] * len(shares), list(range(len(shares)))
        at_work: set[WorkerHandle] = set()
        while todo or waiting:
            if todo:
                self._fill()
                self._add_ready(wait=not self.members)
                busy = [sum(loads[s] for s, worker in waiting.values() if worker is m) for m in self.members]
                chosen = assign_to_workers([loads[s] for s in todo], self._speeds(), busy)
                for s, w in sorted(zip(todo, chosen, strict=True), key=lambda pair: -loads[pair[0]]):
                    tries[s] += 1
                    if not any(worker is self.members[w] for _, worker in waiting.values()):
                        self.members[w].since = time.monotonic()
                    promise, acc = begin(self.members[w].actor, shares[s])
                    waiting[promise], apart[promise] = (s, self.members[w]), acc
                todo = []
            ready, hangs = self._next(waiting)
            s, member = waiting.pop(ready)
            try:
                if hangs:
                    raise TimeoutError(
                        f"it finished nothing for {self.hang_seconds:g} s; where shares take that long, raise hang_seconds="
                    )
                done[s], member.since = Completed(ray.get(ready), apart[ready], member), time.monotonic()
                member.record_speed(done[s].done)
                at_work.add(member)
            except failures.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            # the worker is gone or hangs, or its node, or the result is gone
            except (
                failures.RayError,
                TimeoutError,
            ) as error:
                todo = [s, *(other for other, worker in waiting.values() if worker is member)]
                waiting = {ref: task for ref, task in waiting.items() if task[1] is not member}
                self._drop(member, error, tries[s])
        best = max(self._speeds(), default=math.nan)
        for member in self.members:
            if member not in at_work:
                member.decay_speed(best)
        return [done[s] for s in range(len(shares))]

    def _next(self, waiting: dict[Any, tuple[int, WorkerHandle]]) -> tuple[Any, bool]:
        """(the first reference that is ready, False), or (one of a worker that has finished nothing for too
        long, True)."""
        late = min(waiting, key=lambda ref: waiting[ref][1].since)
        left = waiting[late][1].since + self.hang_seconds - time.monotonic()
        completed, _ = ray.wait(
            list(waiting), num_returns=1, timeout=None if math.isinf(left) else max(0.0, left)
        )
        return (completed[0], False) if completed else (late, True)

    def measure(self, broadcast: Any, share: Shard) -> dict[str, Any]:
        """Measurements of the first worker for the program of an exchange; empty if it dies, hangs or fails,
        as the others will then."""
        self._fill()
        self._add_ready(wait=not self.members)
        try:
            reference = self.members[0].actor.measure.remote(broadcast, share)
            return dict(
                ray.get(reference, timeout=None if math.isinf(self.hang_seconds) else self.hang_seconds)
            )
        except failures.RayError:
            return {}

    def choose_lanes(self, most: int, measured: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(the fastest number of lanes on the first worker, what was measured for that)."""
        lanes, news = ray.get(self.members[0].actor.choose_lanes.remote(most, measured))
        return lanes, news

    def close(self) -> None:
        """Ends all workers."""
        for member in self.members + self._coming:
            _kill(member)
        self.members, self._coming = [], []

    def _fill(self) -> None:
        """Starts workers to replace those that died."""
        self._coming += [
            WorkerHandle(self._class.remote(self._setup))
            for _ in range(self.size - len(self.members) - len(self._coming))
        ]

    def _add_ready(self, *, wait: bool) -> None:
        """Adds the workers that are ready; with `wait`, waits for one."""
        if not self._coming:
            return
        ready, _ = ray.wait(
            [m.ready for m in self._coming], num_returns=1, timeout=START_SECONDS if wait else 0
        )
        if wait and not ready:
            self.close()
            raise RuntimeError(
                f"no worker was ready after {START_SECONDS:g} s: the cluster may be busy ({ray.available_resources().get('CPU', 0):g} CPU "
                "free); use fewer workers, or close other simulations"
            )
        for member in [m for m in self._coming if m.ready in ready]:
            self._coming.remove(member)
            try:
                member.about = ray.get(member.ready)
            except failures.RayError as error:
                if self.members:
                    log.warning(
                        "a worker could not start, and %d go on without it: %s",
                        len(self.members),
                        _last_line(error),
                    )
                    continue
                self.close()
                raise RuntimeError(f"a worker could not start: {_last_line(error)}") from error
            self.members.append(member)

    def _drop(self, member: WorkerHandle, error: Exception, tries: int) -> None:
        """Drops this worker; raises if one share has killed too many."""
        self.deaths += 1
        self.members = [m for m in self.members if m is not member]
        _kill(member)
        if tries > self.retries:
            raise RuntimeError(
                f"a share of the cohort was begun {tries} times, and each time its worker died: {_last_line(error)}\n"
                "Most often memory is short: use fewer workers, fewer lanes, or stream=True. The state before this round is still good."
            ) from error
        log.warning("%s died or hangs; its share is done again: %s", member, _last_line(error))

    def _speeds(self) -> list[float]:
        """Local steps a second of each member; one not measured yet counts as average."""
        known = [m.speed for m in self.members if not math.isnan(m.speed)]
        return [
            float(np.mean(known)) if known and math.isnan(m.speed) else m.speed if known else 1.0
            for m in self.members
        ]

    def _environment(self) -> dict[str, str]:
        """The environment of a worker's process: as many threads as it has cores, and no GPU that it did not
        ask for."""
        flags = [
            f
            for f in os.environ.get("XLA_FLAGS", "").split()
            if not f.startswith("--xla_force_host_platform_device_count")
        ]
        if self.cpus <= 1:
            flags.append("--xla_cpu_multi_thread_eigen=false")
        threads = str(max(1, int(self.cpus)))
        variables = {"XLA_FLAGS": " ".join(flags), "NPROC": threads, "OMP_NUM_THREADS": threads}
        # empty: any platform, even if this process keeps to the CPU
        variables["JAX_PLATFORMS"] = "" if self.gpus else "cpu"
        if 0 < self.gpus < 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
            variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = (
                f"{0.75 * self.gpus:.3f}"  # 0.75 is what JAX takes where it is alone
            )
        if connections.started:  # this machine only: elsewhere the package is installed in its own place
            variables["PYTHONPATH"] = os.pathsep.join(_path())
        return variables


def _pickled(composed: Round, plan: Plan) -> bytes:
    try:
        return ray.cloudpickle.dumps((composed, plan))
    except Exception as error:
        raise TypeError(
            f"this round cannot be sent to workers: {error}. Functions of an algorithm, task or order must not hold on to open files, "
            "locks, devices and the like: open them inside the function, or pass plain values."
        ) from error


def _path() -> list[str]:
    """The folders in which this process finds modules."""
    return [folder or os.getcwd() for folder in sys.path]


def _kill(member: WorkerHandle) -> None:
    with contextlib.suppress(Exception):
        ray.kill(member.actor)


def _last_line(error: BaseException) -> str:
    """The last line of an error: what went wrong, without the traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    messages = [line for line in lines if "Error" in line.split(":")[0]]
    return (messages or lines or [type(error).__name__])[-1].split(" Some common causes")[0]
