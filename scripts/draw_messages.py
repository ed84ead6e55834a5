"""Draws who sends what in a round of real sites, where each thing is checked, and what each side writes down.

python scripts/draw_messages.py            writes docs/sites.png
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro

COORDINATOR, SITE = 0.21, 0.79
FLOW = (
    ("coordinator", "signs the model for this round;\nits audit log has the digest"),
    ("down", "request: the model's numbers, round, study's hash"),
    (
        "site",
        "signature? said before? this study? this round?\npolicy: paused, hours, minimum, what may leave",
    ),
    ("site", "trains on its own data;\nwhat it keeps between rounds stays in its folder"),
    ("site", "policy: fields and norm; the ledger has\nwhat is about to leave, and the report is signed"),
    ("up", "report: numbers of the model's shape, count of examples, sums of metrics"),
    ("coordinator", "signature? digest? in time? gate: shape, finite,\nweight, norm, same data as before"),
    (
        "coordinator",
        "quorum there: averages, records, saves;\nelse nothing is averaged, and the round is run again",
    ),
)


@dataclass(frozen=True)
class Settings:
    """Where the picture goes."""

    out: Path = Path(__file__).resolve().parents[1] / "docs" / "sites.png"


def main(settings: Settings) -> None:
    """Writes the picture."""
    figure, axis = plt.subplots(figsize=(10, 6.4))
    colours = {"coordinator": "#dbe9f6", "site": "#dff0df"}
    for x, title in (
        (COORDINATOR, "coordinator"),
        (SITE, "each hospital: a process of its own, beside its data"),
    ):
        axis.plot([x, x], [0.2, -len(FLOW) + 0.3], color="grey", linewidth=1, zorder=0)
        axis.text(x, 0.55, title, ha="center", weight="bold")
    for row, (where, text) in enumerate(FLOW):
        if where in colours:
            box = {"boxstyle": "round,pad=0.5", "facecolor": colours[where], "edgecolor": "grey"}
            axis.text(
                COORDINATOR if where == "coordinator" else SITE,
                -row,
                text,
                ha="center",
                va="center",
                fontsize=9,
                bbox=box,
            )
        else:
            ends = (COORDINATOR, SITE) if where == "down" else (SITE, COORDINATOR)
            axis.annotate(
                "",
                (ends[1], -row),
                (ends[0], -row),
                arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.4},
            )
            axis.text(0.5, -row + 0.14, text, ha="center", fontsize=9)
    axis.set(xlim=(-0.02, 1.02), ylim=(-len(FLOW) + 0.3, 0.9))
    axis.axis("off")
    figure.tight_layout()
    figure.savefig(settings.out, dpi=110)
    print(f"wrote {settings.out.name}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
