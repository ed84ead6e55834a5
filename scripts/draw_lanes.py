"""Draws how a cohort is packed: each row a lane, each block a client, as wide as its local steps.

python scripts/draw_lanes.py            writes docs/lanes.png
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro

from fedjax_core.lanes.pack import assign


@dataclass(frozen=True)
class Settings:
    """Which cohort to draw."""

    clients: int = 60
    lanes: int = 8
    seed: int = 4
    out: Path = Path(__file__).resolve().parents[1] / "docs" / "lanes.png"


def main(settings: Settings) -> None:
    """Writes the picture."""
    steps = np.ceil(np.random.default_rng(settings.seed).lognormal(2, 0.9, settings.clients)).astype(int)
    lane, start = assign(steps, settings.lanes)
    end = int((start + steps).max())
    figure, axes = plt.subplots(
        2, 1, figsize=(9, 4.6), height_ratios=[settings.clients / 6, settings.lanes], sharex=True
    )
    shades = plt.get_cmap("viridis")(0.15 + 0.75 * steps / steps.max())
    axes[0].barh(np.arange(settings.clients), steps, left=0, height=0.9, color=shades)
    axes[0].set_title(
        f"{settings.clients} clients of unequal size, side by side: {steps.sum() / steps.size / steps.max():.0%} work",
        loc="left",
    )
    axes[1].barh(lane, steps, left=start, height=0.86, color=shades, edgecolor="white", linewidth=0.6)
    axes[1].set_title(
        f"the same clients queued in {settings.lanes} lanes: {steps.sum() / (settings.lanes * end):.0%} work",
        loc="left",
    )
    axes[1].set_xlabel("local steps")
    for axis in axes:
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(settings.out, dpi=110)
    print(f"wrote {settings.out.name}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
