"""What does a round of real sites take over slow links, by how the updates are sent?

    sudo scripts/links.sh 4 20mbit .venv/bin/python scripts/bench_links.py --address auto      each node behind a link of that speed
    python scripts/bench_links.py                                                              no links, to see what is left

The coordinator has a node of its own, as has each site. A model of so many float32 numbers goes out as it is,
and updates come back as the uplink makes them; there is next to nothing to compute.
"""

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_core as fc
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, build
from fedjax_core.sites.wire.identity import SiteKey

SITES = Path("/tmp/bench_links")  # where links.sh has each node look for the file of its site

UPLINKS = {"float32": None, "half": fc.uplink.half(), "8 bits": fc.uplink.quantize(bits=8)}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    parameters: int = 1_200_000
    sites: int = 4
    rounds: int = 5
    """After one that is not counted."""
    address: str | None = None
    """Of a cluster with the resources node1, node2, ...; without one Ray is started here."""


def study(uplink: str, parameters: int) -> Study:
    """A model of so many numbers and next to nothing to compute, its updates sent in this way."""
    task = fc.Task(
        lambda key: jnp.ones(parameters), lambda params, batch, key: (params.mean() - batch["x"]) ** 2
    )
    stage = UPLINKS[uplink]
    local = optax.sgd(parameters / 4)  # halves every number in a step
    return Study(
        fc.compose(fc.algorithms.fedavg(task, local), **({} if stage is None else {"uplink": stage})),
        batch_size=16,
        epochs=1,
    )


def write_site(i: int, uplink: str, settings: Settings, coordinator: SiteKey) -> SiteFile:
    """What the coordinator has of a site on a node of its own, whose file is written to where the node looks
    for it."""
    name, home = f"site{i}", SITES / f"site{i}"
    shutil.rmtree(home, ignore_errors=True)
    fc.Clients.from_list([{"x": np.zeros(16, np.float32)}], ids=[name]).save(home / "data")
    SiteKey.make(name).save(home)
    (home / "coordinator.pub").write_text(coordinator.line + "\n")
    said = {
        "name": name,
        "data": "data",
        "folder": "state",
        "study": "bench_links:study",
        "key": f"{name}.key",
    }
    lines = [f'{key} = "{value}"\n' for key, value in {**said, "coordinator": "coordinator.pub"}.items()]
    arguments = f'arguments = {{ uplink = "{uplink}", parameters = {settings.parameters} }}\n'
    (home / "site.toml").write_text("".join(lines) + arguments)
    return SiteFile(name=name, resources={f"node{i}": 1.0})


def measure(name: str, settings: Settings, folder: Path) -> np.ndarray:
    """Seconds of each round."""
    built, key = (
        build("bench_links:study", {"uplink": name, "parameters": settings.parameters}),
        SiteKey.make("coordinator"),
    )
    numbers = range(1, settings.sites + 1)
    if settings.address is None:
        files = [
            SiteFile(name=f"site{i}", data={"x": np.zeros(16, np.float32)}, folder=folder / f"site{i}")
            for i in numbers
        ]
    else:
        files = [write_site(i, name, settings, key) for i in numbers]
    seconds = []
    there = {"address": settings.address, "insecure_local": settings.address is not None}
    with fc.Federation(
        built.round, files, batch_size=16, epochs=1, folder=folder / "coordinator", key=key, **there
    ) as federation:
        state = federation.init(jax.random.key(0))
        for _ in range(settings.rounds + 1):
            begun = time.perf_counter()
            state, seen = federation.run(state, np.arange(settings.sites))
            seconds.append(time.perf_counter() - begun)
            if float(seen["clients"]) != settings.sites:
                raise RuntimeError(f"only {float(seen['clients']):g} of {settings.sites} sites reported")
    return np.array(seconds[1:])


def main(settings: Settings) -> None:
    """Measures and prints a line for each way to send updates."""
    print(f"{settings.sites} sites, {settings.parameters:,} parameters; jax {jax.__version__}")
    for name in UPLINKS:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(name, settings, Path(folder))
        print(
            f"{name}: {np.median(seconds):.2f} s a round ({seconds.min():.2f} to {seconds.max():.2f})",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
