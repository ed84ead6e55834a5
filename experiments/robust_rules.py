"""Which rule withstands which attack: the accuracy of each pair on a problem that a plane parts, as a table.

20 clients, 4 of them liars, all in each of 20 rounds; `python experiments/robust_rules.py` (about 3 minutes).
"""

from dataclasses import dataclass

import jax
import numpy as np
import optax
import tyro

import fedjax_core as fc

LIARS = [0, 5, 10, 15]
CLIENTS, FEATURES, CLASSES = 20, 20, 4


@dataclass
class Settings:
    """Of the study."""

    rounds: int = 20
    lean: float = 1.0  # how far a client's examples lean to two of the classes
    seed: int = 0


def data(settings: Settings) -> tuple[fc.Clients, fc.Clients]:
    """Clients who have more of some classes, and pooled test examples."""
    rng = np.random.default_rng(settings.seed)
    planes = rng.normal(size=(FEATURES, CLASSES))

    def some(n: int, lean: np.ndarray) -> dict[str, np.ndarray]:
        x = rng.normal(size=(n, FEATURES)) + lean
        return {"x": x.astype(np.float32), "y": np.argmax(x @ planes, axis=1).astype(np.int32)}

    leans = [settings.lean * planes[:, rng.integers(CLASSES)] / np.sqrt(FEATURES) for _ in range(CLIENTS)]
    return fc.Clients.from_list([some(100, lean) for lean in leans]), fc.Clients.from_list(
        [some(4000, np.zeros(FEATURES))]
    )


def main(settings: Settings) -> None:
    """Prints the table."""
    agg, att, f = fc.aggregators, fc.attacks, len(LIARS)
    rules = {
        "mean": agg.mean(),
        "median": agg.median(),
        "trimmed mean": agg.trimmed_mean(f=f),
        "Krum": agg.krum(f),
        "Multi-Krum": agg.multi_krum(f),
        "geometric median": agg.geometric_median(),
        "Bulyan": agg.bulyan(f),
        "centered clipping": agg.centered_clipping(tau=0.5, steps=3),
        "DnC": agg.dnc(f),
        "norm bound": agg.norm_bound(1.0, agg.mean()),
        "NNM, trimmed mean": agg.nnm(f, agg.trimmed_mean(f=f)),
        "bucketing, Krum": agg.bucketing(2, agg.krum(f)),
    }
    attacks = {
        "none": None,
        "sign flip": att.sign_flip(),
        "scaling -10": att.scaling(-10.0),
        "Gaussian": att.gaussian(1.0),
        "label flip": "labels",
        "ALIE": att.alie(),
        "IPM 0.5": att.ipm(0.5),
        "mimic": att.mimic(),
        "min-max": att.min_max(),
        "min-sum": att.min_sum(),
    }
    clean, test = data(settings)
    task = fc.models.logistic(features=FEATURES, classes=CLASSES)
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.2), weighting=fc.algorithms.uniform)
    print(f"| rule | {' | '.join(attacks)} |\n|---|{'---:|' * len(attacks)}")
    for name, rule in rules.items():
        cells = []
        for attack in attacks.values():
            composed, clients = fc.compose(algorithm, aggregator=rule), clean
            if attack == "labels":
                clients = att.label_flip(clean, LIARS, CLASSES)
            elif attack is not None:
                composed, clients = att.attacked(composed, attack), att.mark(clean, LIARS)
            sim = fc.Simulator(composed, clients, batch_size=20, epochs=1, lanes=4, mesh=None)
            state, _ = sim.run_many(
                sim.init(jax.random.key(settings.seed)), [list(range(CLIENTS))] * settings.rounds
            )
            cells.append(f"{100 * fc.evaluate(task, state.params, test).pooled['accuracy']:.1f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
