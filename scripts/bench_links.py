"""What does a round of real sites take over slow links, by how the model and the updates are sent?

    sudo scripts/links.sh 4 20mbit .venv/bin/python scripts/bench_links.py --address auto      each node behind a link of that speed
    python scripts/bench_links.py                                                              no links, to see what is left

The coordinator has a node of its own, as has each site. A model of so many float32 numbers goes out as the
downlink makes it, and updates come back as the uplink makes them; there is next to nothing to compute.
`--ways "float32"` measures these alone.
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

PLAIN = fc.uplink.chain()
FOUR_BITS = fc.uplink.feedback(fc.uplink.eden(4))
WAYS = {
    "float32": (PLAIN, PLAIN),
    "half": (fc.uplink.half(), PLAIN),
    "8 bits": (fc.uplink.quantize(bits=8), PLAIN),
    "8 bits, model 8 bits": (fc.uplink.quantize(bits=8), fc.uplink.feedback(fc.uplink.quantize(bits=8))),
    "EDEN 2 bits, model 4 bits": (fc.uplink.eden(2), FOUR_BITS),
    "top-k 5 %, model 4 bits": (fc.uplink.feedback(fc.uplink.topk(0.05)), FOUR_BITS),
}
"""The uplink and the downlink of each way to send updates and the model, which goes out as it is where it is not
named. A compressed model's loss stays with the server and goes out in the next round (`feedback`)."""


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    parameters: int = 1_200_000
    sites: int = 4
    rounds: int = 5
    """After one that is not counted."""
    address: str | None = None
    """Of a cluster with the resources node1, node2, ...; without one Ray is started here."""
    ways: tuple[str, ...] = tuple(WAYS)


def study(way: str, parameters: int) -> Study:
    """A model of so many numbers and next to nothing to compute, sent in this way."""
    task = fc.Task(
        lambda key: jnp.ones(parameters), lambda params, batch, key: (params.mean() - batch["x"]) ** 2
    )
    uplink, downlink = WAYS[way]
    local = optax.sgd(parameters / 4)  # halves every number in a step
    composed = fc.compose(fc.algorithms.fedavg(task, local), uplink=uplink, downlink=downlink)
    return Study(composed, batch_size=16, epochs=1)


def write_site(i: int, way: str, settings: Settings, coordinator: SiteKey) -> SiteFile:
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
    arguments = f'arguments = {{ way = "{way}", parameters = {settings.parameters} }}\n'
    (home / "site.toml").write_text("".join(lines) + arguments)
    return SiteFile(name=name, resources={f"node{i}": 1.0})


def measure(name: str, settings: Settings, folder: Path) -> np.ndarray:
    """Seconds of each round but the first."""
    built, key = (
        build("bench_links:study", {"way": name, "parameters": settings.parameters}),
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


def bytes_of(way: str, parameters: int) -> tuple[float, float]:
    """(of a report, of the model on its way to one site), as they travel."""
    model = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    up, down = (fc.uplink.bits(stage, model) / 8 for stage in WAYS[way])
    return up, down


def main(settings: Settings) -> None:
    """Measures and prints a line for each way to send the model and the updates."""
    if unknown := sorted(set(settings.ways) - set(WAYS)):
        raise ValueError(f"there is no way {', '.join(unknown)}: there are {', '.join(WAYS)}")
    print(f"{settings.sites} sites, {settings.parameters:,} parameters; jax {jax.__version__}")
    for name in settings.ways:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(name, settings, Path(folder))
        up, down = bytes_of(name, settings.parameters)
        print(
            f"{name}: {np.median(seconds):.2f} s a round ({seconds.min():.2f} to {seconds.max():.2f}); "
            f"a report {up:,.0f} bytes, the model {down:,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
