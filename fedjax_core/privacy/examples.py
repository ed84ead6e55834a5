"""DP-SGD at clients: the gradient of a step is a noisy mean of clipped gradients of single examples, so that
it reveals little about any one.

    g = (sum over the batch of clip(gradient of one example, C) + N(0, (noise C)^2)) / batch_size

It is an algorithm's `gradient=`. The privacy of a step depends on how batches are made:

"passes": the engine's batches, from passes once over all examples in a drawn order. The account has `epochs`
Gaussian mechanisms a round with a multiplier of noise / 2, between data sets that differ in one example: a
sum changes by at most 2 C. There is no gain from sampling.

"poisson": each example by itself with probability batch_size / n, in a shape with room for more (`cap`). The
account has `steps` sampled Gaussian mechanisms a round, between data sets with one example more or less, for
each client by its own n, which is public.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016. A client's Poisson sample is to its
examples what a cohort is to clients, and is counted by the same code (`client_level`), cut-off batches
included.

In a simulation the noise is drawn by the step's key, and batches by a seed, both from the run: they protect
from those who see models and updates but neither of these. A real site draws everything in its steps by a
secret from the operating system, so the noise of "passes" protects from the coordinator too. The same request
gets the same bytes; another one, for example of a run that goes on from an earlier model, gets new noise,
which costs privacy again. The site's audit log says which draw each update is of. Sites make their batches
themselves, of passes: "poisson" is for simulations, and sites refuse it.

>>> private = example_level(clip=1.0, noise=8.0, batch_size=20, rounds=10, delta=1e-5)
>>> f"{private.epsilon(rounds=1):.3f} {private.epsilon():.3f}"
'0.926 3.341'
>>> sampled = example_level(clip=1.0, noise=1.0, batch_size=20, rounds=10, steps=5, sampling="poisson", sizes=[2000, 500], delta=1e-5)
>>> sampled.cap, f"{sampled.epsilon():.2f} {sampled.epsilon(examples=2000):.2f}"
(68, '2.17 0.58')
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import gradient
from fedjax_core.checks import at_least
from fedjax_core.metrics import Mean
from fedjax_core.privacy import accounting, clipping, thin
from fedjax_core.privacy.client_level import ClientLevel, calibrated
from fedjax_core.privacy.sampling import batches, headroom
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Params

_CACHE = 1 << 18  # bytes


@dataclass(frozen=True)
class ExampleLevel:
    """The result of `example_level`: its settings, and the pieces made from them."""

    clip: float
    noise: float
    batch_size: int
    """The divisor of sums: the size of a batch, under "poisson" the expected one."""
    rounds: int
    epochs: int
    delta: float
    microbatch: int | None = None
    sampling: Literal["passes", "poisson"] = "passes"
    steps: int | None = None
    sizes: tuple[int, ...] = ()
    cap: int = 0
    """The number of examples that a batch has room for: the engine's `batch_size`."""
    seed: int = 0

    @cached_property
    def gradient(self) -> Any:
        """The `gradient=` for an algorithm."""
        return noisy_gradient(
            self.clip, self.noise, self.batch_size, self.microbatch, self.cap, self.sampling == "poisson"
        )

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of clients' batches, for `fc.Simulator(round, clients, **private.plan)`, which the account
        assumes."""
        if self.sampling == "passes":
            return {"batch_size": self.batch_size, "epochs": self.epochs}
        assert self.steps is not None
        order = batches(self.sizes, self.batch_size, self.cap, self.steps, self.seed)
        return {"batch_size": self.cap, "steps": self.steps, "order": order}

    def epsilon(self, rounds: int | None = None, examples: int | None = None) -> float:
        """The epsilon of one of a client's examples after this many rounds (default: all), at `delta`.

        Under "poisson" for a client with this many `examples`; by default the one with the fewest, whose
        epsilon is largest."""
        rounds = self.rounds if rounds is None else int(rounds)
        if self.sampling == "passes":
            return accounting.epsilon(
                self.noise / 2, rounds=self.epochs * rounds, delta=self.delta, sampling="everyone"
            )
        assert self.steps is not None
        n = _smallest(self.sizes) if examples is None else int(examples)
        return _of_samples(
            n, self.batch_size, rounds * self.steps, self.cap, self.delta, noise=self.noise
        ).epsilon(rounds * self.steps)


def example_level(
    *,
    clip: float,
    batch_size: int,
    rounds: int,
    epochs: int = 1,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float = 1e-6,
    microbatch: int | None = None,
    sampling: Literal["passes", "poisson"] = "passes",
    steps: int | None = None,
    sizes: Sequence[int] = (),
    seed: int = 0,
) -> ExampleLevel:
    """Differential privacy of each client's examples, in `epochs` passes in each of `rounds` in which the
    client takes part.

    Give `epsilon`, at `delta`, or `noise`, in multiples of `clip`. `batch_size` is the engine's, and what
    sums are divided by. `microbatch` examples' gradients are in memory at once, a divisor of the batch size;
    where not given what is fastest. The epsilon is the same for every client, however many examples it has. A
    run with `steps=` goes on through a pass in the next round: count the passes of the smallest client.

    With sampling="poisson" give `steps` a round instead of epochs, and `sizes`, the numbers of examples of
    all clients (`clients.sizes`), which are public. `batch_size` is then the expected one, `.plan` has the
    batches for the simulator, and the noise is for the client with the fewest examples: for others the
    epsilon is less. `seed` draws the batches, and must be unknown to anybody whom the epsilon protects from.
    """
    at_least(1, batch_size=batch_size, rounds=rounds, epochs=epochs)
    if sampling not in ("passes", "poisson"):
        raise ValueError(f'sampling must be "passes" or "poisson", got {sampling!r}')
    if (epsilon is None) == (noise is None):
        raise ValueError(
            f"give epsilon=, for which the noise is found, or noise= itself, and not both: got {epsilon} and {noise}"
        )
    poisson = sampling == "poisson"
    if poisson and (steps is None or epochs != 1):
        raise ValueError(
            'sampling="poisson" draws each batch anew, so a round has steps= of them and no epochs='
        )
    if poisson and not any(n > 0 for n in sizes):
        raise ValueError(
            'sampling="poisson" needs sizes=, the numbers of examples of all clients, such as clients.sizes'
        )
    if not poisson and (steps is not None or len(sizes)):
        raise ValueError('steps= and sizes= are of sampling="poisson": passes are counted by epochs=')
    counts = tuple(int(n) for n in sizes)
    if poisson:
        assert steps is not None
        at_least(1, steps=steps)
        room = max(headroom(n, min(1.0, batch_size / n)) for n in counts if n > 0)
        cap = math.ceil(room / (microbatch or 1)) * (microbatch or 1)
    else:
        cap = batch_size
    if microbatch is not None and (microbatch < 1 or cap % microbatch):
        raise ValueError(f"microbatch={microbatch} does not divide batch_size={batch_size}: take a divisor")
    if epsilon is not None and poisson:
        assert steps is not None
        noise = _of_samples(_smallest(counts), batch_size, rounds * steps, cap, delta, epsilon=epsilon).noise
    elif epsilon is not None:
        noise = 2 * accounting.noise_for(epsilon, rounds=rounds * epochs, delta=delta, sampling="everyone")
    assert noise is not None
    accounting.epsilon(noise, rounds=0, delta=delta, sampling="everyone")  # checks
    bound = clipping.bounds(clip)
    assert isinstance(bound, float)
    return ExampleLevel(
        bound,
        float(noise),
        batch_size,
        rounds,
        epochs,
        float(delta),
        microbatch,
        sampling,
        steps,
        counts,
        cap,
        seed,
    )


def _smallest(sizes: Sequence[int]) -> int:
    return min(n for n in sizes if n > 0)


def _of_samples(n: int, batch_size: int, steps: int, cap: int, delta: float, **privacy: float) -> Any:
    """The account of Poisson samples of n examples: that of a population of n, `batch_size` of whom take part
    in a round."""
    made = ClientLevel(n, min(batch_size, n), steps, 1.0, privacy.get("noise", 0.0), delta, cap=min(cap, n))
    return calibrated(made, privacy["epsilon"]) if "epsilon" in privacy else made


def _at_once(size: int, rows: Any) -> int:
    """The number of examples whose gradients are in memory at once: on a CPU no more than its cache holds, a
    divisor of `size`.

    `rows` are shapes of the gradients that are made of each of them, without those that are `Thin`. Of an MLP
    784-200-200-10 that are 410 numbers. Where all 199,210 were made, a batch of 10 took 2.6 ms one by one and
    39 at once (AMD EPYC, without the noise).
    """
    if jax.default_backend() != "cpu":
        return size
    each = tree.nbytes(rows) / size
    return max(n for n in range(1, size + 1) if size % n == 0 and (n == 1 or n * each <= _CACHE))


def noisy_gradient(
    clip: float,
    noise: float,
    batch_size: int,
    microbatch: int | None = None,
    cap: int | None = None,
    sampled: bool = False,
) -> Any:
    """(task, params, batch, key) -> (the noisy mean of clipped gradients, no metrics, which would leave
    without noise).

    Sums are divided by `batch_size`; a batch has at most `cap` examples, by default as many. `sampled`: the
    account counts on Poisson samples, so real sites, which draw none, refuse it.
    """
    most = cap or batch_size

    def of_a_batch(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
        if task.statistics.names:
            raise ValueError(
                "DP-SGD takes the gradient of each example by itself, and BatchNorm has examples meet, in statistics without noise: use "
                "GroupNorm or LayerNorm"
            )
        size = len(batch.mask)
        if size > most:
            raise ValueError(
                f"batches have {size} examples, and the account is of at most {most}: give simulators what `plan` has"
            )
        places = jnp.arange(size, dtype=jnp.int32)

        def of_one(columns: Any, mask: Array, place: Array) -> Params:
            one = Batch(jax.tree.map(lambda x: x[None], columns), jnp.ones_like(mask)[None])
            return tree.wide(gradient(task, params, one, jax.random.fold_in(key, place))[0])

        whole = (batch.columns, batch.mask, places)
        of_each = thin.one_by_one(of_one, *jax.tree.map(lambda x: x[0], whole))
        few = microbatch
        if few is None or size % few:
            few = _at_once(size, thin.made(jax.eval_shape(of_each, *whole)))
        parts = jax.tree.map(lambda x: x.reshape(size // few, few, *x.shape[1:]), whole)

        def add(total: Params, part: Any) -> tuple[Params, None]:
            return tree.add(total, clipping.clipped_sum(of_each(*part), part[1], clip)), None

        if few == size:
            total = clipping.clipped_sum(of_each(*whole), batch.mask, clip)
        else:
            total, _ = lax.scan(add, tree.wide(tree.zeros_like(params)), parts)
        noisy = clipping.add_normal(total, noise * clip, keys.protecting(key, sampled))
        return tree.like(tree.scale(1 / batch_size, noisy), params), {}

    return of_a_batch
