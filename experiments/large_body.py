"""What a frozen body of a billion numbers costs: compiling a round, the memory plan, and the peak, in a process.

`python experiments/large_body.py` makes layers of `width` x `width` numbers in bfloat16 (1.007 billion: 2.0 GB),
adapts all of them by factors of rank 8 (FedIT) or trains the last layer alone, and simulates rounds of four
clients in one lane. It prints the processor seconds of making the task, of the plan (which compiles), of the first round and
of the next, the plan, and the process's peak.
"""

import resource
import time
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import tyro

import fedjax_core as fc


@dataclass
class Settings:
    """Of a measurement."""

    width: int = 8192
    layers: int = 15
    classes: int = 10
    trained: Literal["factors", "head"] = "factors"
    rank: int = 8
    batch: int = 4
    rounds: int = 3


def pretrained(settings: Settings) -> dict[str, np.ndarray]:
    """Layers of one draw, each in another order of its rows, and a head."""
    draw, width = np.random.default_rng(0), settings.width
    layer = (draw.standard_normal((width, width), np.float32) / np.sqrt(width)).astype(ml_dtypes.bfloat16)
    layers = {f"layer{i:02d}": np.roll(layer, i, axis=0) for i in range(settings.layers)}
    head = draw.standard_normal((width, settings.classes), np.float32) / np.sqrt(width)
    return layers | {"head": head.astype(ml_dtypes.bfloat16)}


def network(settings: Settings) -> fc.Task:
    """A perceptron with residual connections, computed in bfloat16."""

    def outputs(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        h = x.astype(jnp.bfloat16)
        for i in range(settings.layers):
            h = h + jax.nn.relu(h @ params[f"layer{i:02d}"]) / settings.layers
        return (h @ params["head"]).astype(jnp.float32)

    def loss(params: dict[str, jax.Array], batch: fc.Batch, key: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs(params, batch["x"]), batch["y"])

    return fc.Task(lambda key: jax.tree.map(jnp.asarray, pretrained(settings)), loss)


def task_of(settings: Settings) -> fc.Task:
    """The task whose body is frozen."""
    body, whole = pretrained(settings), network(settings)
    if settings.trained == "head":
        return fc.models.train_only(whole, body, "head")
    names = [name for name in body if name.startswith("layer")]
    adapted = fc.models.lora(whole, body, *names, rank=settings.rank)
    return fc.models.train_only(adapted, adapted.init(jax.random.key(0)), "a", "b")


def peak() -> float:
    """GB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(settings: Settings) -> None:
    """Measures and prints a line for each step."""
    numbers = settings.layers * settings.width**2 + settings.width * settings.classes
    print(
        f"{numbers / 1e9:.3f} billion numbers, {settings.trained} trained; before: {peak():.2f} GB",
        flush=True,
    )
    begun = time.process_time()

    def step(name: str) -> None:
        nonlocal begun
        print(f"{name}: {time.process_time() - begun:.1f} s, peak {peak():.2f} GB", flush=True)
        begun = time.process_time()

    task = task_of(settings)
    step("task made")
    draw = np.random.default_rng(1)
    clients = fc.Clients.from_list(
        [
            {
                "x": draw.normal(size=(settings.batch, settings.width)).astype(np.float32),
                "y": draw.integers(0, settings.classes, settings.batch).astype(np.int32),
            }
            for _ in range(4)
        ]
    )
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.01)))
    sim = fc.Simulator(composed, clients, batch_size=settings.batch, epochs=1, lanes=1, mesh=None)
    state = sim.init(jax.random.key(0))
    step("state made")
    plan = sim.plan(4)
    step("planned and compiled")
    print(plan, flush=True)
    for number in range(settings.rounds):
        state, metrics = sim.run(state, [0, 1, 2, 3])
        loss = float(fc.metrics.summary(metrics)["loss"])
        step(f"round {number}, loss {loss:.4f}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
