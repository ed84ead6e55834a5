"""Every algorithm, stage, aggregator and model, once: a new one joins all contracts (`test_contracts.py`) by
adding one line.

An entry is a function of the number of clients that gives a `Round`; models bring the columns that they need.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjax_core import Clients, aggregators, algorithms, compose, metrics, models, privacy, tree, uplink
from fedjax_core.round import Round

SIZES = (5, 1, 0, 23, 4, 7, 2, 8, 3, 6, 1, 4)  # one example, none, and one client larger than all others
SGD = optax.sgd(0.1)


class Entry(NamedTuple):
    """One line of the zoo."""

    build: Callable[..., Round]
    data: str = "classes"
    sites: bool = True
    """Whether real sites can run it."""
    brief: bool = False
    """It has a proof of its own and adds nothing to the engine: one of each kind has two small rounds, and
    all else runs with --slow."""

    def of(self, clients: int) -> Round:
        """For so many clients, where that is a number of the algorithm."""
        return self.build(clients) if inspect.signature(self.build).parameters else self.build()


def clients(kind: str = "classes", sizes=SIZES, ids=None) -> Clients:
    """Twelve unequal clients with columns x [3], y and, for survival, time and event; the same rows for the
    same ids."""
    made = []
    for name in range(len(sizes)) if ids is None else ids:
        rng, n = np.random.default_rng(name), sizes[name]
        shape = (n, 6, 6, 1) if kind == "images" else (n, 3)
        columns = {"x": rng.normal(size=shape).astype(np.float32)}
        if kind == "images":
            columns["x"] = rng.integers(0, 256, shape).astype(np.uint8)
        if kind == "survival":
            columns |= {
                "time": rng.exponential(size=n).astype(np.float32),
                "event": (rng.random(n) < 0.7).astype(np.float32),
            }
        elif kind == "numbers":
            columns["y"] = rng.normal(size=n).astype(np.float32)
        else:
            columns["y"] = rng.integers(0, 3, n).astype(np.int32)
        made.append(columns)
    return Clients.from_list(made, ids=ids)


class Dropped(nn.Module):
    """A linen module with dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(4)(x))))


class Normalised(nn.Module):
    """A linen module with BatchNorm."""

    def setup(self):
        self.first, self.norm, self.last = nn.Dense(4), nn.BatchNorm(momentum=0.9), nn.Dense(3)

    def encode(self, x, train: bool):
        return self.norm(self.first(x), use_running_average=not train)

    def __call__(self, x, train: bool):
        return self.last(nn.relu(self.encode(x, train)))


class Small(nn.Module):
    """An ordinary convolutional linen module."""

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(num_groups=2)(nn.Conv(2, (3, 3))(x))
        return nn.Dense(3)(nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2)).reshape(len(x), -1))


class Twin(nnx.Module):
    """An nnx module with dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.inner, self.dropout, self.outer = (
            nnx.Linear(3, 4, rngs=rngs),
            nnx.Dropout(0.3, rngs=rngs),
            nnx.Linear(4, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.outer(self.dropout(nnx.relu(self.inner(x))))


def cross_entropy(outputs, batch):
    """One loss an example."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])


def task():
    """The model of every entry that is not about models."""
    return models.mlp(features=3, hidden=(4,), classes=3)


def small():
    """The cheapest model to compile, for entries whose idea is in no layer."""
    return models.logistic(features=3, classes=3)


def adapted():
    """The usual model, whose first layer moves by factors of rank one."""
    return models.lora(task(), task().init(jax.random.key(5)), "0/w", rank=1)


def flax_task(module, kind="classes", **how):
    """A Flax module as a task."""
    return models.from_flax(
        module, {k: v[:2] for k, v in clients(kind).columns.items()}, loss=cross_entropy, **how
    )


@cache
def fedavg(**arguments) -> Round:
    """FedAvg around which one piece is varied."""
    return compose(algorithms.fedavg(task(), local=SGD), **arguments)


def lossy():
    """Stages one inside another, with something for every client to keep."""
    return uplink.chain(uplink.clip(0.5), uplink.feedback(uplink.quantize(bits=4)))


def by_round():
    """Every number of FedProx goes by the round."""
    return algorithms.fedprox(
        lambda round: scaled_loss(1 / (1 + round)),
        mu=lambda round: 0.5 * round,
        local=lambda round: optax.sgd(0.1 * 0.5**round),
        server=lambda round: optax.sgd(0.9**round, momentum=0.5),
    )


def hidden(params, batch, key):
    """What the usual model makes of an example before its last layer."""
    return jax.numpy.tanh(batch["x"] @ params[0]["w"] + params[0]["b"][None])


def scaled_loss(factor):
    """The usual model, with its training loss scaled."""
    usual = task()
    return usual._replace(loss=lambda params, batch, key: factor * usual.loss(params, batch, key))


def signs():
    """Half of the coordinates negated on their way, the same ones for all clients."""

    def flip(key, update):
        leaves, structure = jax.tree.flatten(update)
        drawn = [
            jax.random.rademacher(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves)
        ]
        return structure.unflatten([x * sign for x, sign in zip(leaves, drawn, strict=True)])

    return uplink.stage(
        "signs",
        encode=lambda state, own, update, sender: (flip(sender.shared, update), own),
        finish=lambda state, value, info, key: (flip(info.shared, value), state),
    )


def tenth(state, value, info, key):
    """Of a total, what a mean over ten clients would be."""
    return jax.tree.map(lambda x: x / 10, value), state


def momentum():
    """An aggregator that remembers its last value, and draws how much of it counts."""
    mean = aggregators.mean()

    def value(acc, last, key):
        now, _ = mean.value(acc, (), key)
        now = jax.tree.map(lambda x, y: x + 0.5 * jax.random.uniform(key) * y, now, last)
        return now, now

    return mean._replace(name="momentum", value=value, init=tree.zeros_like, linear=False)


def moved() -> Round:
    """FedAvg whose reports tell how far the client moved."""
    algorithm = algorithms.fedavg(task(), SGD)
    (exchange,) = algorithm.exchanges

    def finish(message, carry, seen):
        report = exchange.client.finish(message, carry, seen)
        return report._replace(
            metrics={"moved": metrics.Mean(tree.norm(report.update) * seen.examples, seen.examples)}
        )

    return compose(
        algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(finish=finish)),))
    )


def two_trips() -> Round:
    """FedAvg whose clients train for one epoch, whatever the run's, and report in a second exchange, without
    data."""
    algorithm = algorithms.fedavg(task(), SGD)
    (exchange,) = algorithm.exchanges
    client = exchange.client

    def keep(message, carry, seen):
        return algorithms.Report((), jnp.float32(0), own=client.finish(message, carry, seen).update)

    def report(message, own, seen):
        return algorithms.Report(own, seen.examples, own)

    train = exchange._replace(
        client=client._replace(finish=keep), update=None, work=algorithms.Work(epochs=1)
    )
    send = exchange._replace(
        client=algorithms.Client(lambda message, own, key: own, client.step, report),
        work=algorithms.Work(steps=0),
    )
    return compose(
        algorithm._replace(
            init_client=lambda params: jax.tree.map(jnp.zeros_like, params), exchanges=(train, send)
        )
    )


def every_report() -> Round:
    """FedAvg whose server is given every report, and leaves the largest change of each coordinate out."""
    algorithm = algorithms.fedavg(task(), SGD)
    (exchange,) = algorithm.exchanges

    def update(server, reports):
        here = reports.each.weight > 0

        def others(x):
            most = jnp.max(
                jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), jnp.abs(x), 0), axis=0, keepdims=True
            )
            return jnp.sum(jnp.where(jnp.abs(x) < most, x, 0), axis=0) / reports.clients.astype(x.dtype)

        return exchange.update(server, reports._replace(value=jax.tree.map(others, reports.value)))

    return compose(
        algorithm._replace(exchanges=(exchange._replace(update=update, reports="all"),)),
        uplink=uplink.clip(0.5),
    )


class Ranked(NamedTuple):
    """A model, and a weight for each client."""

    params: object
    weights: jax.Array  # [N]


def addressed(clients: int) -> Round:
    """FedAvg whose clients weigh their reports by what the server tells each of them alone; it grows with
    each report."""
    algorithm = algorithms.fedavg(task(), SGD)
    (exchange,) = algorithm.exchanges
    client = exchange.client

    def finish(told, carry, seen):
        return client.finish(told.message, carry, seen)._replace(
            weight=told.mine, stats={"weight_given": told.mine}
        )

    def update(server, reports):
        grown = server.weights.at[reports.each.position].add(
            reports.each.stats["weight_given"] / 2, mode="drop"
        )
        return Ranked(tree.add(server.params, reports.value), grown)

    exchange = exchange._replace(
        broadcast=lambda server: server.params,
        client=algorithms.Client(
            lambda told, own, key: client.begin(told.message, own, key),
            lambda told, carry, batch, key: client.step(told.message, carry, batch, key),
            finish,
        ),
        update=update,
        address=lambda server, positions: server.weights.at[positions].get(mode="clip"),
    )
    start = jnp.linspace(1.0, 2.0, clients)
    return compose(algorithm._replace(init=lambda params: Ranked(params, start), exchanges=(exchange,)))


N = len(SIZES)
# Each by itself, for the contracts that need no round, and in a round of FedAvg under its name. Few bits, for
# the more levels, the likelier that float32's last digit tips one of them over.
STAGES: dict[str, Callable[[], uplink.Stage]] = {
    "clip": lambda: uplink.clip(0.1),
    "quantize": lambda: uplink.quantize(bits=4),
    "half": lambda: uplink.half(),
    "feedback": lambda: uplink.feedback(uplink.quantize(bits=4)),
    "eden": lambda: uplink.eden(bits=3),
    "ef21": lambda: uplink.ef21(uplink.topk(0.3), population=N),
}
LOSSY: dict[str, Callable[[], uplink.Stage]] = {  # by themselves alone: of one make with those above
    "k-level": lambda: uplink.k_level(5),
    "rotated": lambda: uplink.rotated(uplink.k_level(2)),
    "qsgd": lambda: uplink.qsgd(4),
    "terngrad": lambda: uplink.terngrad(),
    "sign": lambda: uplink.sign(),
    "drive": lambda: uplink.drive(),
    "drive, biased": lambda: uplink.drive(unbiased=False, rotate=False),
    "topk": lambda: uplink.topk(0.3),
    "randk": lambda: uplink.randk(0.3),
    "powersgd": lambda: uplink.powersgd(1),
    "low rank": lambda: uplink.low_rank(1),
    "count sketch": lambda: uplink.count_sketch(3, 10),
}
AGGREGATORS: dict[str, Callable[[], aggregators.Aggregator]] = {
    "mean": lambda: aggregators.mean(),
    "total": lambda: aggregators.total(),
    "trimmed mean": lambda: aggregators.trimmed_mean(0.2),
    "median": lambda: aggregators.median(),
    "remembers, draws": lambda: momentum(),
    "nnm, centered clipping": lambda: aggregators.nnm(1, aggregators.centered_clipping(tau=0.5)),
    "multi-krum": lambda: aggregators.multi_krum(1),
}
# by themselves alone: of one make with those above
ROBUST: dict[str, Callable[[], aggregators.Aggregator]] = {
    "krum": lambda: aggregators.krum(1),
    "geometric median": lambda: aggregators.geometric_median(),
    "rfa": lambda: aggregators.rfa(),
    "bulyan": lambda: aggregators.bulyan(0),
    "meamed": lambda: aggregators.meamed(1),
    "mda": lambda: aggregators.mda(1),
    "bucketing": lambda: aggregators.bucketing(2, aggregators.median()),
    "fltrust": lambda: aggregators.fltrust(),
    "norm bound": lambda: aggregators.norm_bound(1.0, aggregators.mean()),
    "arc": lambda: aggregators.arc(1, aggregators.trimmed_mean(f=1)),
    "zeroing": lambda: aggregators.zeroing(aggregators.mean()),
    "adaptive clip": lambda: aggregators.adaptive_clip(aggregators.mean()),
    "foolsgold": lambda: aggregators.foolsgold(),
    "dnc": lambda: aggregators.dnc(1, samples=2, coordinates=8),
    "by weight": lambda: aggregators.nnm(0, aggregators.trimmed_mean(f=1, weighted=True)),
}


# Under these a round has the sum of its reports, and noise: at real sites of a secret that a simulation does
# not have.
PRIVATE: dict[str, Callable[[], uplink.Stage]] = {
    "gaussian": lambda: privacy.gaussian({"0": 0.2, "1": 0.1}, noise=0.1, cohort=8, weight_cap=5.0),
    "adaptive gaussian": lambda: level(clip=privacy.adaptive(0.1), noise=0.1),
    "banded gaussian": lambda: level(cohort=4, bands=3),
}


def level(**settings) -> uplink.Stage:
    """The stage of a client level for the zoo's clients."""
    usual = {
        "population": N,
        "cohort": 8,
        "rounds": 9,
        "clip": 0.2,
        "noise": 0.1,
        "delta": 1e-3,
        "open_metrics": True,
    }
    return privacy.client_level(**{**usual, **settings}).uplink


def staged(make: Callable[[], uplink.Stage]) -> Entry:
    """FedAvg under a stage."""
    return Entry(lambda: fedavg(uplink=make()))


def noisy(make: Callable[[], uplink.Stage]) -> Entry:
    """FedAvg whose reports are added up under a stage that adds noise to the sum."""
    return Entry(lambda: fedavg(uplink=make(), aggregator=aggregators.total()), sites=False)


def aggregated(make: Callable[[], aggregators.Aggregator]) -> Entry:
    """FedAvg whose reports meet so: all alike, where the rule goes by no weights."""

    def build() -> Round:
        rule = make()
        weighting = algorithms.uniform if rule.alike else algorithms.by_examples
        return compose(algorithms.fedavg(task(), SGD, weighting=weighting), aggregator=rule)

    return Entry(build)


def brief(build: Callable[..., algorithms.Algorithm], data: str = "classes", **how: bool) -> Entry:
    """An algorithm by itself, which has a proof of its own."""
    if inspect.signature(build).parameters:
        return Entry(lambda n=N: compose(build(n)), data, brief=True, **how)
    return Entry(lambda: compose(build()), data, brief=True, **how)


ZOO: dict[str, Entry] = {
    # algorithms
    "fedavg": Entry(lambda: fedavg()),
    "fedavg, momentum": Entry(
        lambda: compose(algorithms.fedavg(task(), optax.sgd(0.1, momentum=0.9), optax.sgd(1.0, momentum=0.9)))
    ),
    "fedyogi": Entry(lambda: compose(algorithms.fedavg(task(), SGD, algorithms.fedopt.yogi(0.01, tau=1e-3)))),
    "fedprox": Entry(lambda: compose(algorithms.fedprox(task(), 0.5, SGD))),
    "by round": Entry(lambda: compose(by_round())),
    "scaffold": Entry(lambda n=N: compose(algorithms.scaffold(task(), 0.1, n))),
    "proxskip": Entry(lambda: compose(algorithms.proxskip(task(), 0.1, 0.5))),
    "mime": Entry(lambda: compose(algorithms.mime(task(), optax.sgd(0.1, momentum=0.9)))),
    "fedper": Entry(lambda: compose(algorithms.fedper(task(), SGD, personal=["1"]))),
    "fedbn": Entry(
        lambda: compose(
            algorithms.fedper(flax_task(Normalised(), statistics="personal"), SGD, personal=["params/norm"])
        )
    ),
    "moon": Entry(lambda: compose(algorithms.moon(task()._replace(features=hidden), 0.5, SGD))),
    "per-fedavg": Entry(lambda: compose(algorithms.perfedavg(task(), 0.2, SGD))),
    "fedsgd": brief(lambda: algorithms.fedsgd(small(), SGD)),
    "mimelite": brief(lambda: algorithms.mimelite(small(), optax.sgd(0.1, momentum=0.9))),
    "scaffold_one": brief(lambda n: algorithms.scaffold_one(small(), 0.1, n)),
    "feddyn": brief(lambda n: algorithms.feddyn(small(), 0.5, SGD, n)),
    "fedadmm": brief(lambda: algorithms.fedadmm(small(), 0.5, SGD)),
    "fedlin": brief(lambda: algorithms.fedlin(small(), SGD)),
    "feddane": brief(lambda: algorithms.feddane(small(), 0.5, SGD)),
    "fedexp": brief(lambda: algorithms.fedexp(small(), SGD)),
    "fedcm": brief(lambda: algorithms.fedcm(small(), 0.1, 0.5)),
    "fedvarp": brief(lambda n: algorithms.fedvarp(small(), SGD, n)),
    "fedlesam": brief(lambda: algorithms.fedlesam(small(), 0.1, SGD)),
    "fednar": brief(lambda: algorithms.fednar(small(), 0.1, 0.5, SGD)),
    "reptile": brief(lambda: algorithms.reptile(small(), 0.5, SGD)),
    "diloco": brief(lambda: algorithms.diloco(small(), optax.sgd(0.1, momentum=0.9))),
    "sparseloco": brief(lambda: algorithms.sparseloco(small(), SGD, 0.5)),
    "fedadamw": brief(lambda: algorithms.fedadamw(small(), 0.01, eps=1e-3)),
    "fedmuon": brief(lambda n: algorithms.fedmuon(small(), SGD, n)),
    "fedmuon_aligned": brief(
        lambda n: algorithms.fedmuon_aligned(small(), optax.sgd(0.1, momentum=0.9), 0.3)
    ),
    "qffl": brief(lambda: algorithms.qffl(small(), 0.1, 1.0)),
    "term": brief(lambda: algorithms.term(small(), 0.5, SGD)),
    "afl": brief(lambda n: algorithms.afl(small(), SGD, 0.01, n)),
    "fedmgda": brief(lambda: algorithms.fedmgda(small(), SGD, 0.1, 0.3)),
    "ditto": brief(lambda: algorithms.ditto(small(), 0.5, SGD)),
    "apfl": brief(lambda: algorithms.apfl(small(), 0.1, 0.5, 0.1)),
    "pfedme": brief(lambda: algorithms.pfedme(small(), 0.1, 1.0, 0.1, 2)),
    "fedrep": brief(lambda: algorithms.fedrep(task(), SGD, ["1"])),
    "lgfedavg": brief(lambda: algorithms.lgfedavg(task(), SGD, ["1"])),
    "fedala": brief(lambda: algorithms.fedala(task(), SGD, ["1"])),
    "fedproto": brief(lambda: algorithms.fedproto(task()._replace(features=hidden), 0.5, SGD, 4)),
    "fedlc": brief(lambda: algorithms.fedlc(small(), 1.0, SGD)),
    "feddf": brief(lambda: algorithms.feddf(small(), SGD, {"x": jnp.eye(3)}, SGD, 2)),
    "analytic": brief(lambda: algorithms.analytic(lambda batch: batch["x"], 3, 3, 1.0)),
    "gaussian heads": brief(lambda: algorithms.gaussian_heads(lambda batch: batch["x"], 3, 3, floor=0.1)),
    "fedfisher": brief(lambda: algorithms.fedfisher(small(), SGD, 0.1)),
    "fedex": brief(lambda: algorithms.fedex(adapted(), SGD)),
    "flora": brief(lambda: algorithms.flora(adapted(), SGD)),
    "lora-fair": brief(lambda: algorithms.lora_fair(adapted(), SGD)),
    "ffa-lora": brief(
        lambda: algorithms.fedavg(models.train_only(adapted(), adapted().init(jax.random.key(0)), "b"), SGD)
    ),
    "hierarchical": brief(lambda n: algorithms.hierarchical(small(), SGD, [i % 3 for i in range(n)], 2)),
    "cfl": brief(lambda n: algorithms.cfl(small(), SGD, n, 3, 0.05, 0.06)),
    "importance": brief(lambda n: algorithms.importance(small(), SGD, [0.5 + i / (2 * n) for i in range(n)])),
    "fedasync": brief(lambda: algorithms.fedasync(small(), SGD)),
    "gossip": brief(
        lambda n: algorithms.gossip(small(), SGD, algorithms.metropolis([(i, (i + 1) % n) for i in range(n)]))
    ),
    "metrics of a report": Entry(moved),
    "two trips": Entry(two_trips),
    "every report": Entry(every_report),
    "addressed": Entry(lambda n=N: addressed(n)),
    "ifca": Entry(lambda: compose(algorithms.ifca(task(), 2, SGD))),
    "fedsam": Entry(lambda: compose(algorithms.fedsam(task(), 0.1, SGD))),
    "dp-sgd": Entry(
        lambda: compose(
            algorithms.fedavg(
                task(), SGD, gradient=privacy.noisy_gradient(0.5, 0.5, batch_size=4, microbatch=2)
            )
        )
    ),
    # stages
    **{name: staged(make) for name, make in STAGES.items()},
    "fednova, clip": Entry(lambda: compose(algorithms.fednova(task(), 0.1), uplink=uplink.clip(0.1))),
    "scaffold, clip, feedback": Entry(
        lambda n=N: compose(algorithms.scaffold(task(), 0.1, n), uplink=lossy())
    ),
    "mime, clip, feedback": Entry(lambda: compose(algorithms.mime(task(), SGD), uplink=lossy())),
    "signs": Entry(lambda: fedavg(uplink=signs())),
    "secure": Entry(
        lambda: fedavg(
            uplink=uplink.chain(uplink.clip(0.5), uplink.secure(0.5, 23, 2**9)),
            aggregator=aggregators.total(),
        ),
        sites=False,
    ),
    **{name: noisy(make) for name, make in PRIVATE.items()},
    "local gaussian": Entry(
        lambda: fedavg(
            uplink=privacy.local(clip=0.2, noise=0.1, rounds=9, open_counts=True, open_metrics=True).uplink
        ),
        sites=False,
    ),
    # what the server sends is coded, and it keeps what that loses
    "downlink": Entry(
        lambda n=N: compose(
            algorithms.scaffold(task(), 0.1, n),
            uplink=lossy(),
            downlink=uplink.feedback(uplink.quantize(bits=4)),
        )
    ),
    # what the server sends is a difference from what clients have
    "delta": Entry(
        lambda n=N: compose(algorithms.mime(task(), SGD), downlink=uplink.delta(uplink.topk(0.3), n))
    ),
    "delta for each": Entry(
        lambda n=N: compose(
            algorithms.scaffold(task(), 0.1, n),
            uplink=lossy(),
            downlink=uplink.delta(uplink.quantize(bits=4), n, per_client=True),
        )
    ),
    # aggregators
    # the first all others have
    **{name: aggregated(make) for name, make in AGGREGATORS.items() if name not in ("mean", "total")},
    "total": Entry(
        lambda: fedavg(uplink=uplink.stage("tenth", finish=tenth), aggregator=aggregators.total())
    ),
    # models
    "logistic": Entry(lambda: compose(algorithms.fedavg(models.logistic(features=3, classes=3), SGD))),
    "linear": Entry(lambda: compose(algorithms.fedavg(models.linear(features=3), SGD)), "numbers"),
    "cox": Entry(lambda: compose(algorithms.fedavg(models.cox(features=3), SGD)), "survival"),
    "linen dropout": Entry(lambda: compose(algorithms.fedavg(flax_task(Dropped()), SGD))),
    "linen batch norm": Entry(
        lambda: compose(algorithms.fedavg(flax_task(Normalised(), statistics="shared"), SGD))
    ),
    "linen convolution": Entry(
        lambda: compose(algorithms.fedavg(flax_task(Small(), "images"), SGD)), "images"
    ),
    "nnx dropout": Entry(lambda: compose(algorithms.fedavg(flax_task(Twin), SGD))),
    # what makes models fit, or trains a part of them
    "remat": Entry(lambda: compose(algorithms.fedavg(models.remat(task(), 2), SGD))),
    "accumulate": Entry(lambda: compose(algorithms.fedavg(models.accumulate(task(), 3), SGD))),
    "bfloat16": Entry(lambda: compose(algorithms.fedavg(models.bfloat16(task()), SGD))),
    "head only": Entry(
        lambda n=N: compose(
            algorithms.scaffold(models.train_only(task(), task().init(jax.random.key(5)), "1"), 0.1, n)
        )
    ),
}


@cache
def round_of(name: str, clients: int = N) -> Round:
    """An entry's round, always the same one: who asks for it again has the programs that were compiled for
    it."""
    return ZOO[name].of(clients)
