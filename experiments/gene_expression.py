"""Gene expression of four laboratories: what a laboratory adds to a risk score, and what ComBat over sites
takes out again.

    FEDJAX_CORE_DATA=... python experiments/gene_expression.py    reads breast_gse7390/*.arff there, prints a table, draws a picture

198 patients of GSE7390 with 76 genes and the time to distant metastasis. The laboratories are made up:
patients are dealt to four of 80 to 27, more of high grade to the first, and each adds to every gene a shift
and a scale of its own. All is by sums of sites."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fedjax_core as fc
from fedjax_core.clinical.concordance import concordance, survival_counts

SHARES = (0.4, 0.26, 0.2, 0.14)


def read() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(genes [n, 76], the other columns): age, size, grade as numbers, er as text, time in days and event."""
    file = Path(os.environ["FEDJAX_CORE_DATA"]) / "breast_gse7390" / "breast_cancer_GSE7390-metastasis.arff"
    head, _, body = file.read_text().partition("@data")
    names = [
        line.split()[1].strip("'\"") for line in head.splitlines() if line.lower().startswith("@attribute")
    ]
    rows = [
        [cell.strip().strip("'\"") for cell in line.split(",")] for line in body.split("\n") if line.strip()
    ]
    columns = {name: np.array(x) for name, x in zip(names, zip(*rows, strict=True), strict=True)}
    rest = ("age", "size", "grade", "er", "t.tdm", "e.tdm")
    genes = np.stack([columns[name].astype(float) for name in names if name not in rest], axis=1)
    found = {"age": columns["age"].astype(float), "size": columns["size"].astype(float), "er": columns["er"]}
    event = np.isin(np.char.lower(columns["e.tdm"]), ("1", "true", "1.0")) * 1
    return genes, found | {
        "high": (columns["grade"] == "poorly differentiated") * 1.0,
        "time": columns["t.tdm"].astype(float),
        "event": event,
    }


def laboratories(high: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """[n] which laboratory each patient is of: those of high grade first, with some disorder."""
    order = np.argsort(-high + draw.normal(0, 0.8, len(high)), kind="stable")
    found = np.empty(len(high), int)
    found[order] = np.searchsorted(np.cumsum(SHARES), np.arange(len(high)) / len(high), side="right")
    return found


def of_site(clients: fc.Clients, names: list[str]) -> float:
    """The mean share of the genes' variance that is between laboratories."""
    shares = []
    for name in names:
        rows = [np.asarray(one[name], float) for one in clients]
        whole = np.concatenate(rows)
        shares.append(
            sum(len(x) * (x.mean() - whole.mean()) ** 2 for x in rows) / ((whole - whole.mean()) ** 2).sum()
        )
    return float(np.mean(shares))


def main() -> None:
    """Prints the table and draws the first two components of each."""
    draw = np.random.default_rng(0)
    genes, rest = read()
    lab = laboratories(rest["high"], draw)
    names = [f"g{i}" for i in range(genes.shape[1])]
    size = genes.std(0)
    spoilt = (
        genes * draw.uniform(0.7, 1.4, (4, len(names)))[lab]
        + (draw.normal(0, 1.0, (4, len(names))) * size)[lab]
    )

    def clients_of(of: np.ndarray) -> fc.Clients:
        return fc.Clients.from_table({"site": lab, **rest, **dict(zip(names, of.T, strict=True))}, by="site")

    before, after = clients_of(genes), clients_of(spoilt)
    found = fc.stats.combat(after, names, keep="age + size + er + high")
    versions = {
        "as measured": before,
        "with laboratories' effects": after,
        "after ComBat": found.apply(after),
    }
    _, axes = plt.subplots(1, 3, figsize=(11, 3.8))
    print(f"patients by laboratory {np.bincount(lab).tolist()}, events {rest['event'].sum()}")
    print(
        "| genes | variance between laboratories | hazard ratio of the score (95 %) | p | proportional, p | C-index |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for ax, (label, clients) in zip(axes, versions.items(), strict=True):
        component = fc.stats.pca(clients, names, 2)
        scores = component.scores(np.stack([clients.columns[name] for name in names], axis=1))
        sign = np.sign(np.corrcoef(scores[:, 0], clients.columns["high"])[0, 1])
        scored = clients.with_columns(
            dict(clients.columns) | {"score": sign * scores[:, 0] / np.sqrt(component.variances[0])}
        )
        fit = fc.stats.cox("time, event ~ score + age + size", scored, schoenfeld="log")
        b, (low, high) = fit.coefficients["score"], fit.intervals["score"]
        risk = sum(fit.coefficients[name] * np.asarray(scored.columns[name], float) for name in fit.names)
        places = [np.unique(x, return_inverse=True)[1] for x in (scored.columns["time"], risk)]
        edges = [np.arange(place.max() + 2) - 0.5 for place in places]
        c = concordance(
            survival_counts(places[0], scored.columns["event"], places[1], *edges), exact=True
        ).value
        ratio = f"{np.exp(b):.3f} ({np.exp(low):.3f} to {np.exp(high):.3f})"
        print(
            f"| {label} | {of_site(clients, names):.1%} | {ratio} | {fit.p_values['score']:.4f} | {fit.schoenfeld.global_p:.3f} | {c:.3f} |"
        )
        ax.scatter(
            sign * scores[:, 0],
            scores[:, 1],
            c=np.repeat(np.arange(4), clients.sizes),
            cmap="tab10",
            vmax=9,
            s=12,
        )
        ax.set(title=label, xlabel="first component", ylabel="second component")
    plt.tight_layout()
    plt.savefig(Path(__file__).with_name("gene_expression.png"), dpi=90)


if __name__ == "__main__":
    main()
