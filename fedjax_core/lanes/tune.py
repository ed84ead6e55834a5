"""Chooses the number of lanes by timing real steps of this model on this device, and remembers it.

    from a guess by the size of the model, twice and half as many, and on in the better direction while it pays and time is left

Many lanes help a small model, whose step is all overhead, and hurt a large one, whose copies no longer fit
the cache. One exchange is timed as the simulator runs it, over made-up clients whose numbers of steps are
spread like the real ones', and whose examples are spread over as much memory. That gives a step's time in
full lanes, which is divided by how full the lanes of a real cohort are.

>>> best({1: 4.0, 2: 3.0, 4: 3.5})
2
"""

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_core import keys, tree
from fedjax_core.constants import compiled
from fedjax_core.lanes import program
from fedjax_core.lanes.exchange import collect
from fedjax_core.lanes.mesh import aligned
from fedjax_core.lanes.pack import Places, Schedule, lay_out, pack
from fedjax_core.round import Round, State
from fedjax_core.types import Batch, Columns
from fedjax_core.xla import tuning_cache
from fedjax_core.xla.options import compiler_options

log = logging.getLogger("fedjax_core")

_BUDGET_SECONDS = 6.0  # no candidate is begun that would end later; 0: takes the guess
_RUN_SECONDS = 0.3  # least time for a candidate, in five turns, the best of which counts: machines are noisy
_VISITS = 4  # made-up clients a lane; 2 for a large model, a run of which takes seconds
_MOST_STEPS = 16  # of one made-up client
# Bytes of made-up examples: with all of them in the cache, few lanes look faster than they are.
_EXAMPLES_BYTES = 32 << 20

_CLOSE = 1.01  # fewer lanes are taken unless more are faster by this factor


def choose(
    composed: Round,
    examples: Columns,
    steps: np.ndarray,
    most: int,
    *,
    rows: int = 0,
    fill: Callable[[int], float] = lambda lanes: 1.0,
    cores: Mesh | None = None,
) -> int:
    """The number of lanes for one device, at most `most`.

    `examples` is one batch [B, ...], `steps` [N] the steps of each client, `rows` the number of examples of
    all clients, and `fill(lanes)` the share of that many lanes that a round's work fills. Where devices are
    `cores` of one processor, all are timed at once: alone, one would be faster."""
    if not _BUDGET_SECONDS:
        return max(1, min(guess(composed), most))
    steps = steps[steps > 0] if (steps > 0).any() else np.ones(1, np.int64)
    steps = np.clip(np.quantile(steps, (np.arange(32) + 0.5) / 32).round().astype(np.int64), 1, _MOST_STEPS)
    rows = min(rows, _EXAMPLES_BYTES * len(jax.tree.leaves(examples)[0]) // max(1, tree.nbytes(examples)))
    begin = guess(composed)
    beside = f" cores {cores.size}" if cores is not None else ""
    filled = [round(fill(lanes), 3) for lanes in (begin, 2 * begin)]
    question = f"lanes {_fingerprint(composed, examples)} steps {steps.tolist()} most {most} rows {rows} fill {filled}{beside}"
    known = tuning_cache.lookup(question)
    if known is None:
        start = time.perf_counter()
        seconds = climb(
            begin, most, lambda lanes: _time(composed, examples, steps, lanes, rows, cores) / fill(lanes)
        )
        known = {
            "lanes": best(seconds),
            "microseconds a step": {str(lanes): round(s * 1e6, 1) for lanes, s in seconds.items()},
        }
        log.info(
            "chose %d lanes in %.1f s of measuring: %s",
            known["lanes"],
            time.perf_counter() - start,
            known["microseconds a step"],
        )
        tuning_cache.store(question, known)
    lanes = int(known["lanes"])
    if jax.process_count() > 1:  # hosts that chose differently would not run the same program
        lanes = int(multihost_utils.broadcast_one_to_all(np.int32(lanes)))
    return lanes


def guess(composed: Round) -> int:
    """A guess of the number of lanes, by the size of the model alone."""
    params = jax.eval_shape(composed.algorithm.init_params, keys.shape())
    numbers = tree.size(params)
    return next((lanes for limit, lanes in ((10_000, 64), (50_000, 16), (500_000, 8)) if numbers <= limit), 1)


def climb(
    begin: int, most: int, measure: Callable[[int], float], budget: float = _BUDGET_SECONDS
) -> dict[int, float]:
    """{number of lanes tried: seconds a step}: `begin`, then double and half, and on in the better
    direction."""
    start, cost = time.perf_counter(), 0.0
    seconds: dict[int, float] = {}

    def tried(lanes: int) -> bool:
        nonlocal cost
        if (
            lanes in seconds
            or not 1 <= lanes <= most
            or (seconds and time.perf_counter() - start + cost > budget)
        ):
            return False
        begun = time.perf_counter()
        seconds[lanes] = measure(lanes)
        cost = time.perf_counter() - begun
        return True

    tried(max(1, min(begin, most)))
    while True:
        lanes = min(seconds, key=seconds.__getitem__)
        fresh = [n for n in (2 * lanes, max(1, lanes // 2)) if tried(n)]
        if not fresh:
            return seconds


def best(seconds: dict[int, float]) -> int:
    """The fewest lanes that are as good as the best."""
    limit = min(seconds.values()) * _CLOSE
    return min(lanes for lanes, s in seconds.items() if s <= limit)


def _time(
    composed: Round,
    examples: Columns,
    steps: np.ndarray,
    lanes: int,
    rows: int = 0,
    cores: Mesh | None = None,
) -> float:
    """Seconds for one local step of one client, in this many lanes (on each of the cores), where clients take
    these numbers of steps.

    Slots in which a lane idles count as steps: the few clients here leave more of them than a cohort does.
    """
    K, B = (
        (2 * lanes if guess(composed) == 1 else max(8, lanes * _VISITS)),
        jax.tree.leaves(examples)[0].shape[0],
    )
    each = np.resize(steps[np.random.default_rng(0).permutation(len(steps))], K)
    rows = max(B, rows)
    examples = aligned(jax.tree.map(lambda x: np.resize(x, (rows, *x.shape[1:])), examples))
    first = np.repeat(np.random.default_rng(1).integers(0, rows - B + 1, K), each)
    layout = lay_out((first[:, None] + np.arange(B)).astype(np.int32), each, lanes)
    schedule = pack(layout, K, lanes, 1, layout.slots)
    places = Places(
        np.arange(K, dtype=np.int32),
        np.zeros((K, 2), np.uint32),
        (B * each).astype(np.float32),
        np.ones(K, np.float32),
        np.arange(K, dtype=np.int32),
    )
    e = next((e for e, exchange in enumerate(composed.algorithm.exchanges) if exchange.work.trains), 0)

    def exchange(state: State, times: Any, examples: Columns, schedule: Schedule) -> Any:
        def again(i: Any, state: State) -> State:
            sent, state = composed.broadcast(e, state, jnp.asarray(places.client))
            kept, here = tree.take(state.clients, places.position), jax.tree.map(jnp.asarray, places)
            among = program.among_of(here, None)
            collected = collect(composed, e, examples, sent, state, kept, here, schedule, None, among)
            return program.conclude(composed, e, state, collected, kept, among)

        return jax.lax.fori_loop(0, times, again, state)

    state = jax.jit(composed.init, static_argnums=1)(jax.random.key(0), K)
    given: Any = (state, np.int32(1), examples, schedule)
    given = jax.device_put(given, None if cores is None else NamedSharding(cores, PartitionSpec()))
    if cores is not None:  # each does the same work
        exchange = jax.shard_map(
            exchange, mesh=cores, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
        )
    constants = composed.algorithm.task.constants
    run = compiled(exchange, constants, compiler_options=compiler_options(cores=cores is not None))
    jax.block_until_ready(run(given[0], np.int32(0), *given[2:]))  # compiles

    def seconds(times: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(run(given[0], np.int32(times), *given[2:]))
        return time.perf_counter() - begun

    once = min(seconds(1), seconds(1))
    times = max(1, int(_RUN_SECONDS / 5 / once))
    runs = [once] if times == 1 else [seconds(times) for _ in range(5)]
    return min(runs) / (times * layout.slots * lanes)


def _fingerprint(composed: Round, examples: Columns) -> str:
    """A digest of all the computation that a client does."""

    def client(key: Any, batch: Any) -> Any:
        state = composed.init(key, 1)
        kept = jax.tree.map(lambda x: x[0], state.clients)
        results = []
        for e, exchange in enumerate(composed.algorithm.exchanges):
            message = composed.told(e, state)
            carry = exchange.client.begin(message, kept.own, key)
            results.append(
                exchange.client.step(
                    message, carry, Batch(batch, jnp.ones(jax.tree.leaves(batch)[0].shape[0])), key
                )
            )
        return results

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), examples)
    traced = str(jax.make_jaxpr(client)(keys.shape(), shapes))
    return hashlib.sha256(f"{traced} {composed.uplink.name} {composed.aggregator.name}".encode()).hexdigest()[
        :16
    ]
