"""A federated problem that is solved on paper: client i's loss is the mean of (x - w)^2 / 2 over its examples, so g_i(w) = w - mean_i."""

import jax.numpy as jnp
import numpy as np

from fedjax_core import Clients, Simulator, Task, compose

VALUES = ([1.0, 3.0], [5.0], [-1.0, 0.0, 4.0])  # means 2, 5, 1; six examples with mean 2
MEANS, SIZES, POOLED = np.array([2.0, 5.0, 1.0]), np.array([2, 1, 3]), 2.0
START = 0.5

TASK = Task(init=lambda key: jnp.array([START]), loss=lambda w, batch, key: 0.5 * jnp.square(batch["x"] - w[0]))
CLIENTS = Clients.from_list([{"x": np.array(v, np.float32)} for v in VALUES])


def simulate(algorithm, rounds=1, cohort=(0, 1, 2), **settings):
    """The state after some rounds of full-batch steps, and the simulator."""
    import jax

    sim = Simulator(compose(algorithm, **settings.pop("pieces", {})), CLIENTS, **{"batch_size": 3, "epochs": 1, **settings})
    state = sim.init(jax.random.key(0))
    for _ in range(rounds):
        state, _ = sim.run(state, list(cohort))
    return state


def descend(start, target, lr, steps):
    """Where `steps` steps of gradient descent on (w - target)^2 / 2 end: the distance shrinks by 1 - lr each."""
    return target + (1 - lr) ** steps * (start - target)
