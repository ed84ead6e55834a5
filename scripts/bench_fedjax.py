"""FedJAX's FedAvg on a workload: prints its platform, then for each line on standard input the seconds an
example of one round.

Started by bench_engine.py, in FedJAX's own environment.
"""

import sys
import time
from typing import Any

import bench_workloads
import jax
import jax.numpy as jnp

jax.tree_map = jax.tree.map  # removed from JAX after FedJAX's last release

import fedjax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402


def main(name: str) -> None:
    workload = bench_workloads.WORKLOADS[name]
    x, y, offsets = workload.data()

    def gradient(params: Any, batch: Any, rng: Any) -> Any:
        return jax.grad(
            lambda p: jnp.mean(bench_workloads.losses(workload.logits(p, batch["x"]), batch["y"]))
        )(params)

    hparams = fedjax.ShuffleRepeatBatchHParams(
        batch_size=workload.batch_size, num_epochs=1, drop_remainder=False
    )
    algorithm = fed_avg.federated_averaging(
        gradient, fedjax.optimizers.sgd(workload.lr), fedjax.optimizers.sgd(1.0), hparams
    )
    state = algorithm.init(workload.init(jax.random.key(0)))
    print(jax.default_backend(), flush=True)
    cohorts = bench_workloads.cohorts(workload.cohort, len(offsets) - 1)
    for r, (_, cohort) in enumerate(zip(sys.stdin, cohorts, strict=False)):
        clients = []
        for i in cohort:
            rows = slice(offsets[i], offsets[i + 1])
            clients.append(
                (int(i), fedjax.ClientDataset({"x": x[rows], "y": y[rows]}), jax.random.PRNGKey(int(i) + r))
            )
        start = time.perf_counter()
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        print((time.perf_counter() - start) / sum(len(dataset) for _, dataset, _ in clients), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
