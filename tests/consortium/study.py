"""A study whose sites keep something between rounds, and data for it: what a consortium is killed over."""

import jax
import numpy as np
import optax

import fedjax_core as fc
from fedjax_core.sites.study import Study
from tests.zoo import lossy, task

NAMES = ("charite", "kyoto", "mayo")
ROUNDS, BATCH, EPOCHS = 6, 4, 2


def columns():
    """The examples of each site, of all three classes."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 3)).astype(np.float32) for n in (14, 18, 23)]
    return [{"x": each, "y": np.digitize(each @ [1, -1, 2], [-1, 1]).astype(np.int32)} for each in x]


def scaffold():
    """SCAFFOLD with clipping and quantisation with feedback: a site keeps a control variate and what was not
    sent."""
    return Study(
        fc.compose(fc.algorithms.scaffold(task(), 0.1, len(NAMES)), uplink=lossy()),
        batch_size=BATCH,
        epochs=EPOCHS,
    )


def prepared():
    """Columns of their own ranges and codes: a study that asks for sums of them before its first round."""
    steps = [fc.preprocess.Rescale("x"), fc.preprocess.OrdinalEncode("y", minimum=1)]
    return Study(
        fc.compose(fc.algorithms.fedavg(task(), local=optax.sgd(0.1))),
        batch_size=BATCH,
        epochs=EPOCHS,
        prepare=steps,
    )


def site_files(folder):
    """A file for each site, beside its data."""
    folder.mkdir()
    for name, found in zip(NAMES, columns(), strict=True):
        fc.Clients.from_list([found], ids=[name]).save(folder / f"{name}-data")
        (folder / f"{name}.toml").write_text(f'name = "{name}"\ndata = "{name}-data"\nlabels = "y"\n')
    return folder


def simulated():
    """The state after all rounds on the simulator."""
    everyone = fc.Clients.from_list(columns(), ids=list(NAMES))
    sim = fc.Simulator(scaffold().round, everyone, batch_size=BATCH, epochs=EPOCHS, lanes=1)
    state = sim.init(jax.random.key(0))
    for _ in range(ROUNDS):
        state, _ = sim.run(state, np.arange(len(NAMES)))
    return state
