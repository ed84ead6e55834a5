"""Survival of breast cancer over six regions: the published FLamby study again, cell by cell.

    FEDJAX_CORE_DATA=... python experiments/tcga_brca.py       reads tcga_brca/*.csv there, prints tables, draws tcga_brca.png

Cox regression on 39 inputs, batches of 8, 5 rounds of 100 local updates, regions weighed by their training
patients. First weights and batches are those of the published runs (`flamby_draws.py`), so that every C-index
should come out to the last digit."""

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import flamby_cells
import flamby_draws
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_core as fc
from fedjax_core.algorithms import fedopt
from fedjax_core.clinical.concordance import concordance, survival_counts

REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
SITES, FEATURES, BATCH, STEPS, ROUNDS, EPOCHS = len(REGIONS), 39, 8, 100, 5, 30


@dataclass(frozen=True)
class Settings:
    """The TCGA-BRCA study."""

    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    figure: Path | None = None
    """Where the picture goes; beside this file where none is named."""


def read() -> dict[str, fc.Clients]:
    """The six regions' patients, "train" and "test", and all of them as one client, "pooled train" and
    "pooled test"."""
    if "FEDJAX_CORE_DATA" not in os.environ:
        raise SystemExit(
            "set FEDJAX_CORE_DATA to the folder that holds tcga_brca/brca.csv and tcga_brca/train_test_split.csv"
        )
    folder = Path(os.environ["FEDJAX_CORE_DATA"]) / "tcga_brca"
    with (
        (folder / "brca.csv").open(newline="") as lines,
        (folder / "train_test_split.csv").open(newline="") as parts,
    ):
        rows, folds = list(csv.reader(lines))[1:], {row["pid"]: row for row in csv.DictReader(parts)}

    def columns(of: str, fold: str) -> dict[str, np.ndarray]:
        x = np.array([row[1:] for row in rows if row[0] in folds and folds[row[0]][of] == fold], np.float32)
        return {"x": x[:, :-2], "event": x[:, -2], "time": x[:, -1]}

    by_region = {
        split: [columns("fold2", f"{split}_{i}") for i in range(SITES)] for split in ("train", "test")
    }
    found = {split: fc.Clients.from_list(each, ids=REGIONS) for split, each in by_region.items()}
    return found | {
        f"pooled {split}": fc.Clients.from_list([columns("fold", split)], ids=["pooled"])
        for split in ("train", "test")
    }


def strategies(task: fc.Task) -> dict[str, fc.algorithms.Algorithm]:
    """The six federated methods with the published settings."""
    fedavg, sgd = fc.algorithms.fedavg, optax.sgd
    return {
        "FedAvg": fedavg(task, local=sgd(0.1)),
        "FedProx": fc.algorithms.fedprox(task, mu=0.1, local=sgd(0.1)),
        "Scaffold": fc.algorithms.scaffold(
            task, lr=0.01, population=SITES, weighting=fc.algorithms.by_examples
        ),
        "FedAdagrad": fedavg(task, local=sgd(0.01), server=fedopt.adagrad(1.0)),
        "FedAdam": fedavg(task, local=sgd(0.01), server=fedopt.adam(0.1)),
        "FedYogi": fedavg(task, local=sgd(0.01), server=fedopt.yogi(0.1)),
    }


def study(data: Mapping[str, fc.Clients], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """C-index of every method under every seed, {method: [seeds, 7]}: the six regions, then the pooled test
    patients."""
    task = fc.models.cox(FEATURES)
    sizes = data["train"].sizes.tolist()
    orders = [flamby_draws.survival_orders(seed, sizes, ROUNDS, STEPS, BATCH, EPOCHS) for seed in seeds]
    found = {}
    alone = {
        "Pooled Training": data["pooled train"],
        **{f"Local {i}": data["train"].select([i]) for i in range(SITES)},
    }
    for name, one in alone.items():
        order = np.concatenate(
            [flamby_draws.epochs_order(seed, one.examples, EPOCHS, BATCH) for seed in seeds]
        )
        # whose moments last for a round, so this is one round
        training = fc.compose(fc.algorithms.fedavg(task, local=optax.adam(0.1)))
        found[name] = runs(
            fc.Simulator(training, copies(one, seeds), batch_size=BATCH, order=order), seeds, 1, data
        )
    for name, algorithm in strategies(task).items():
        found[name] = by_seeds(
            algorithm, data["train"], [its[name][0] for its in orders], seeds, [ROUNDS] * len(seeds), data
        )
    # What is published as "Cyclic" is the first region's own copy, which the others never see, after the turns that
    # it had.
    order, turns = [its["Cyclic"][0][:1] for its in orders], [its["Cyclic"][1][0] for its in orders]
    found["Cyclic"] = by_seeds(
        fc.algorithms.fedavg(task, local=optax.sgd(0.01)),
        data["train"].select([0]),
        order,
        seeds,
        turns,
        data,
    )
    return found


def by_seeds(
    algorithm: fc.algorithms.Algorithm,
    clients: fc.Clients,
    orders: Sequence[np.ndarray],
    seeds: Sequence[int],
    rounds: Sequence[int],
    data: Mapping[str, fc.Clients],
) -> np.ndarray:
    """[seeds, 7] as `runs`, of a simulator for each seed: SCAFFOLD counts its clients, so that copies of them
    would be too many."""
    found = []
    for seed, order, turns in zip(seeds, orders, rounds, strict=True):
        sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=BATCH, steps=STEPS, order=order)
        found.append(runs(sim, [seed], turns, data))
    return np.concatenate(found)


def copies(clients: fc.Clients, seeds: Sequence[int]) -> fc.Clients:
    """The clients once for each seed, under names of their own."""
    names = [f"{id}, seed {seed}" for seed in seeds for id in clients.ids]
    return fc.Clients.from_list([columns for _ in seeds for columns in clients], ids=names)


def runs(sim: fc.Simulator, seeds: Sequence[int], rounds: int, data: Mapping[str, fc.Clients]) -> np.ndarray:
    """[seeds, 7] C-indices after training each seed's copies for so many rounds."""
    found, of_seed = [], len(sim.clients) // len(seeds)
    for s, seed in enumerate(seeds):
        first = flamby_draws.first_weights(seed, FEATURES)
        state = sim.init(
            jax.random.key(seed), params={"w": jnp.asarray(first[:-1]), "b": jnp.asarray(first[-1])}
        )
        if rounds:
            state, _ = sim.run_many(state, [np.arange(s * of_seed, (s + 1) * of_seed)] * rounds)
        w, b = np.asarray(state.params["w"]), np.asarray(state.params["b"])
        tests = [*data["test"], data["pooled test"][0]]
        found.append([c_index(one["time"], one["event"], one["x"] @ w + b) for one in tests])
    return np.array(found)


def c_index(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C of each one's own time and risk."""
    places = [np.unique(x, return_inverse=True)[1] for x in (time, risk)]
    edges = [np.arange(place.max() + 2) - 0.5 for place in places]
    return concordance(survival_counts(places[0], event, places[1], *edges), exact=True).value


def show(found: Mapping[str, np.ndarray], seeds: Sequence[int]) -> None:
    """Prints mean and deviation over seeds, beside the published means."""
    theirs = flamby_cells.published("tcga", seeds) or {}
    print("| method | " + " | ".join(REGIONS) + " | mean of regions | pooled test | published | difference |")
    print("|---|" + "---:|" * (SITES + 4))
    for name, values in found.items():
        with_mean = np.column_stack([values[:, :SITES], values[:, :SITES].mean(axis=1), values[:, SITES]])
        deviations = with_mean.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(SITES + 2)
        cells = [f"{m:.4f} ± {s:.3f}" for m, s in zip(with_mean.mean(axis=0), deviations, strict=True)]
        if name in theirs:
            mean = theirs[name][:, :SITES].mean()
            cells += [f"{mean:.4f}", f"{values[:, :SITES].mean() - mean + 0.0:+.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(settings: Settings) -> int:
    """Prints the tables and draws the figure; 1 where a federated or pooled cell is not the published one."""
    data = read()
    print(
        f"training patients {data['train'].sizes.tolist()}, test patients {data['test'].sizes.tolist()}, {jax.devices()[0].device_kind}"
    )
    found = study(data, settings.seeds)
    show(found, settings.seeds)
    met = flamby_cells.compare(
        {name: values for name, values in found.items() if not name.startswith("Local")},
        "tcga",
        settings.seeds,
    )
    flamby_cells.compare(
        {name: values for name, values in found.items() if name.startswith("Local")}, "tcga", settings.seeds
    )
    label = "C-index on all 222 test patients, a dot for each of five seeds"
    flamby_cells.draw(
        found, "tcga", settings.seeds, label, settings.figure or Path(__file__).with_name("tcga_brca.png")
    )
    return 0 if met is None or met[0] == met[1] else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
