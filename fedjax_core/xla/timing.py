"""Chooses the fastest form of each convolution of a step, by timing the forms in a compiled loop on this
machine.

Only large enough convolutions are timed, the largest first, until a budget is spent; the others take the
usual form."""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from fedjax_core.types import Array
from fedjax_core.xla import convolutions, tuning_cache
from fedjax_core.xla.convolutions import Convolution
from fedjax_core.xla.options import compiler_options

log = logging.getLogger("fedjax_core")

_BUDGET_SECONDS = 5.0  # for measuring the convolutions of one step; those left over take the usual rule
_CLEARLY = 0.85  # of the usual rule's time, for a loop of one convolution is not the whole step


def choose(wanted: Iterable[Convolution], lanes: int, measure: bool = True) -> dict[Convolution, str]:
    """{convolution: its rule}: from the cache, else measured while the budget lasts, the largest first, else
    the usual one.

    Without `measure`, the usual one for all.
    """
    chosen = {c: c.rules(lanes)[0] for c in sorted(set(wanted), key=lambda c: -c.multiplications)}
    if not measure or jax.process_count() > 1:  # processes must run the same program
        return chosen
    # cores that run this at the same time
    cores = max(1, jax.sharding.get_abstract_mesh().size) if jax.default_backend() == "cpu" else 1
    worth = [
        c
        for c in chosen
        if len(c.rules(lanes)) > 1 and c.multiplications * lanes >= convolutions.WORTH_MEASURING
    ]
    chosen |= {c: rule for c in worth if (rule := _known(c, lanes, cores)) is not None}
    unknown = [c for c in worth if _known(c, lanes, cores) is None]
    if not unknown:
        return chosen
    # In a thread of its own, as this thread is in the middle of a trace.
    with ThreadPoolExecutor(1) as thread:
        return chosen | thread.submit(_measure, unknown, lanes, cores).result()


# what this process uses: one answer for as long as it lives, even where the disk keeps none
_here: dict[str, str] = {}


def _question(c: Convolution, lanes: int, cores: int) -> str:
    return f"rule for a convolution in a compiled loop, {lanes} lanes, {cores} cores, {compiler_options(cores=cores > 1)}: {tuple(c)}"


def _known(c: Convolution, lanes: int, cores: int) -> str | None:
    question = _question(c, lanes, cores)
    if question not in _here:
        answer = tuning_cache.lookup(question)
        rule = answer.get("rule") if isinstance(answer, dict) else None
        if rule not in c.rules(lanes):
            return None
        _here[question] = rule
    return _here[question]


def _measure(unknown: list[Convolution], lanes: int, cores: int) -> dict[Convolution, str]:
    chosen, start = {}, time.perf_counter()
    for c in unknown:
        usual, seconds = c.rules(lanes)[0], dict[str, float]()
        if time.perf_counter() - start < _BUDGET_SECONDS:
            try:
                seconds = _times(c, lanes, cores)
            except Exception as error:  # a failed measurement, for want of memory say, must not stop a run
                log.info(
                    "a convolution of %s with %s, lanes %d, cannot be measured: %s", c.x, c.k, lanes, error
                )
        best = min(seconds, key=lambda rule: seconds[rule], default=usual)
        chosen[c] = best if not seconds or seconds[best] < _CLEARLY * seconds[usual] else usual
        _here[_question(c, lanes, cores)] = chosen[c]
        if seconds:
            tuning_cache.store(_question(c, lanes, cores), {"rule": chosen[c], "seconds": seconds})
            times = ", ".join(f"{rule} {1e3 * t:.2f} ms" for rule, t in seconds.items())
            log.info(
                "convolution of %s with %s, lanes %d, cores %d: %s (%s)",
                c.x,
                c.k,
                lanes,
                cores,
                chosen[c],
                times,
            )
    log.info("the rules for %d convolutions took %.1f s to choose", len(unknown), time.perf_counter() - start)
    return chosen


def _times(c: Convolution, lanes: int, cores: int) -> dict[str, float]:
    """{rule: seconds of the convolution} in a compiled loop that runs on this many cores at once."""
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.standard_normal((lanes, *shape)), c.dtype) for shape in (c.x, c.k))

    def compiled(rule: str) -> Any:
        def turn(_: Any, both: tuple[Array, Array]) -> tuple[Array, Array]:
            x, k = both
            y = lax.optimization_barrier(jax.vmap(partial(c.by, rule))(x, k))
            last = (0 * y.ravel()[-1]).astype(x.dtype)  # each turn waits for the one before
            return x.at[(0,) * x.ndim].add(last), k.at[(0,) * k.ndim].add(last)

        def loop(count: Array, x: Array, k: Array) -> tuple[Array, Array]:
            return lax.fori_loop(0, count, turn, (x, k))

        if cores > 1:
            mesh = Mesh(np.array(jax.local_devices()[:cores]), ("cores",))
            loop = jax.shard_map(
                loop, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
            )
        return (
            jax.jit(loop, compiler_options=compiler_options(cores=cores > 1))
            .lower(np.int32(1), x, k)
            .compile()
        )

    def run(loop: Any, count: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(loop(np.int32(count), x, k))
        return (time.perf_counter() - start) / count

    rules = c.rules(lanes)
    with ThreadPoolExecutor(2) as threads:
        loops = dict(zip(rules, threads.map(compiled, rules), strict=True))
    seconds = {rule: min(run(loop, 3), run(loop, 3)) for rule, loop in loops.items()}
    least = min(seconds.values())
    close = {rule: loop for rule, loop in loops.items() if seconds[rule] < 4 * least}
    count = int(np.clip(0.01 / max(least, 1e-9), 1, 20))
    for _ in range(4):  # in turn, as a machine's speed drifts
        for rule, loop in close.items():
            seconds[rule] = min(seconds[rule], run(loop, count))
    return seconds
