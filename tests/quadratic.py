"""A federated problem that is solved on paper: client i's loss is the mean of (x - w)^2 / 2 over its
examples, so g_i(w) = w - mean_i."""

import jax.numpy as jnp
import numpy as np

from fedjax_core import Clients, Simulator, Task, compose

VALUES = ([1.0, 3.0], [5.0], [-1.0, 0.0, 4.0])  # means 2, 5, 1; six examples with mean 2
MEANS, SIZES, POOLED = np.array([2.0, 5.0, 1.0]), np.array([2, 1, 3]), 2.0
START = 0.5

TASK = Task(
    init=lambda key: jnp.array([START]), loss=lambda w, batch, key: 0.5 * jnp.square(batch["x"] - w[0])
)
CLIENTS = Clients.from_list([{"x": np.array(v, np.float32)} for v in VALUES])


def simulate(algorithm, rounds=1, cohort=(0, 1, 2), **settings):
    """The state after some rounds of full-batch steps, and the simulator."""
    import jax

    sim = Simulator(
        compose(algorithm, **settings.pop("pieces", {})),
        CLIENTS,
        **{"batch_size": 3, "epochs": 1, **settings},
    )
    state = sim.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = sim.run(state, list(cohort))
    return state


def descend(start, target, lr, steps):
    """Where `steps` steps of gradient descent on (w - target)^2 / 2 end: the distance shrinks by 1 - lr
    each."""
    return target + (1 - lr) ** steps * (start - target)


# Clients of unequal steepness, on whom several local steps end elsewhere than the optimum: f_i(w) = (w - b_i)'
# A_i (w - b_i) / 2.
STEEP = np.array([[[2.0, 0.5], [0.5, 1.0]], [[4.0, 0.0], [0.0, 0.5]], [[1.0, -0.3], [-0.3, 3.0]]])
TARGETS = np.array([[1.0, -1.0], [-2.0, 3.0], [0.5, 2.0]])
OPTIMUM = np.linalg.solve(STEEP.sum(0), (STEEP @ TARGETS[:, :, None]).sum(0))[:, 0]
UNEQUAL = Clients.from_list(
    [
        {"A": a[None].astype(np.float32), "b": b[None].astype(np.float32)}
        for a, b in zip(STEEP, TARGETS, strict=True)
    ]
)


def _uneven(w, batch, key):
    away = w["w"][None] - batch["b"]
    return 0.5 * jnp.einsum("ni,nij,nj->n", away, batch["A"], away)


UNEVEN = Task(init=lambda key: {"w": jnp.array([0.3, -0.2])}, loss=_uneven)
START2 = np.array([0.3, -0.2])


def grad(i, w):
    """The gradient of client i's loss."""
    return STEEP[i] @ (w - TARGETS[i])


def on_unequal(
    algorithm, cohorts, steps=3, read=lambda params: np.asarray(params["w"], np.float64), **pieces
):
    """(the model as `read` gives it, the last state) after rounds as plain loops, in which each client takes
    so many steps."""
    import jax

    from fedjax_core import Loops

    loops = Loops(compose(algorithm, **pieces), UNEQUAL, batch_size=1, epochs=steps)
    state = loops.init(jax.random.key(0))
    for cohort in cohorts:
        state, _ = loops.run(state, list(cohort))
    return read(state.params), state


def long_run(algorithm, rounds=400, steps=3):
    """The model after so many rounds with all clients."""
    import jax

    sim = Simulator(compose(algorithm), UNEQUAL, batch_size=1, epochs=steps, lanes=3)
    state, _ = sim.run_many(sim.init(jax.random.key(0)), [[0, 1, 2]] * rounds)
    return np.asarray(state.params["w"], np.float64)
