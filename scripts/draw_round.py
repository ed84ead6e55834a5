"""Draws how a round flows: what the server and a client do in one exchange, and in which file each step
stands.

python scripts/draw_round.py            writes docs/round.png
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro

SERVER, CLIENT = 0.2, 0.8
# (side, what happens, where it stands); "down" and "up" are what crosses between the sides.
FLOW = (
    ("server", "choose the cohort of this round", "data/cohorts.py"),
    ("server", "broadcast(server) → message", "algorithms/fedavg.py"),
    ("down", "message", "lanes: one array for all lanes\nsites: a signed request (sites/wire)"),
    (
        "client",
        "begin(message, own) → carry\nstep(carry, batch) → carry, once a batch\nfinish(carry) → update, weight, own",
        "algorithms/local_training.py",
    ),
    ("client", "encode(update) → what is sent", "uplink/"),
    (
        "up",
        "what is sent, weight, sums of metrics",
        "lanes: rows of an array\nsites: a signed report (sites/protocol, sites/wire)",
    ),
    ("server", "expand(sent) → update;\nrefuse what is not finite", "round.py, uplink/"),
    ("server", "add each update, in the cohort's order", "aggregators/mean.py"),
    ("server", "update(server, mean) → server", "algorithms/fedavg.py"),
    ("server", "evaluate, log, save", "run/rounds.py, run/checkpoint.py"),
)
COLOURS = {"server": "#dbe9f6", "client": "#dff0df"}


@dataclass(frozen=True)
class Settings:
    """Where the picture goes."""

    out: Path = Path(__file__).resolve().parents[1] / "docs" / "round.png"


def main(settings: Settings) -> None:
    """Writes the picture."""
    figure, axis = plt.subplots(figsize=(10, 7))
    for x, title in ((SERVER, "server"), (CLIENT, "each client of the cohort")):
        axis.plot([x, x], [0.3, 0.5 - len(FLOW)], color="grey", linewidth=1, zorder=0)
        axis.text(x, 0.5, title, ha="center", weight="bold")
    for row, (side, what, where) in enumerate(FLOW):
        if side in COLOURS:
            box = {"boxstyle": "round,pad=0.5", "facecolor": COLOURS[side], "edgecolor": "grey"}
            x, other = (SERVER, 0.375) if side == "server" else (CLIENT, 0.6)
            axis.text(x, -row, what, ha="center", va="center", fontsize=9, bbox=box)
            axis.text(
                other,
                -row,
                where,
                ha="left" if side == "server" else "right",
                va="center",
                fontsize=8,
                family="monospace",
            )
        else:
            ends = (SERVER, CLIENT) if side == "down" else (CLIENT, SERVER)
            axis.annotate(
                "", (ends[1], -row), (ends[0], -row), arrowprops={"arrowstyle": "-|>", "linewidth": 1.4}
            )
            axis.text(0.5, -row + 0.1, what, ha="center", va="bottom", fontsize=9)
            axis.text(0.5, -row - 0.1, where, ha="center", va="top", fontsize=8, color="dimgrey")
    axis.set(xlim=(0, 1), ylim=(0.4 - len(FLOW), 0.8))
    axis.axis("off")
    figure.tight_layout()
    figure.savefig(settings.out, dpi=110)
    print(f"wrote {settings.out.name}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
