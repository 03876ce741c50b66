"""``bench/METHODS.md`` from the rows of ``bench.methods`` and ``bench.overhead``: ``python -m bench.methods_report``.

Of each run the latest row counts. Why a method's accuracy is not above that of k-means on the same data stands in
``BELOW`` and ``OF_DATA``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench._data import DATA
from bench._environment import ROOT
from fastdc.catalog import as_table, catalog, list_methods
from fastdc.comparison import with_spread

RESULTS = ROOT / "bench" / "results" / "methods" / "runs.jsonl"
TABLE = ROOT / "bench" / "METHODS.md"
OVERHEAD = RESULTS.parent / "overhead.jsonl"
OF_DATA = {  # why k-means is hard to beat there
    "wine": "178 rows of 13 features in nearly three Gaussian blobs, of which k-means has all but a few rows right; a "
    "network has few rows to learn from",
    "breast cancer": "569 rows in two clouds that overlap, of which k-means has nine of ten right: few rows to train "
    "on, views by noise and dropout blur what lies between the clouds, and optimal transport seeks equal sizes where "
    "212 stand against 357",
}
BELOW = {  # why a method does not beat k-means on images, as far as we can tell
    "ClusterGAN": "a few thousand steps of the generator, in a game that is played for tens of thousands",
    "DECDA": "turns and shifts by a tenth are large in 8 x 8 pixels; NMI and ARI are well above",
    "DEPICT": "its embedding, pre-trained under dropout, begins below k-means of the rows; NMI is above",
    "IIC": "views of vectors are noise, which says little of what digits have in common; NMI is above, and see it on "
    "mnist5000, whose images are turned and shifted",
    "SDCN": "takes ten neighbours, where the paper takes 1 to 10 by the data; NMI is above",
    "SwAV": "noise as views, as IIC; NMI is above",
}
Row = dict[str, Any]


def main() -> None:
    runs, overhead = (_read(path) for path in (RESULTS, OVERHEAD))
    surveys = "## The methods of four surveys, and which of them stand here\n\n" + as_table(list(catalog()))
    parts = [_head(runs), *(_scores(name, runs) for name in DATA), _overheads(overhead), surveys]
    TABLE.write_text("\n\n".join(part for part in parts if part), encoding="utf-8")


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _head(runs: Sequence[Row]) -> str:
    dates = sorted(row["date"][:10] for row in runs)
    span = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        "# Methods on small data\n\nMean ± standard deviation over seeds; seconds of one fit with the threads of the "
        "rows, pre-training included; the networks of mnist5000 (5,000 images) learn in bfloat16. Some defaults were "
        "set with an eye on the classes of these data, of digits above all, whose figures are a little too good for "
        f"it. Measured {span} by `python -m bench.methods`; the page is made by `python -m bench.methods_report`."
    )


def _scores(data: str, runs: Sequence[Row]) -> str:
    """The table of one data set, and why methods stand below k-means; empty without rows."""
    latest = {(row["method"], row["seed"]): row for row in runs if row["data"] == data}
    found: dict[str, list[Row]] = {}
    for (method, _), row in latest.items():
        found.setdefault(method, []).append(row)
    if not found:
        return ""
    accuracy = {method: float(np.mean([row["acc"] for row in rows])) for method, rows in found.items()}
    order = sorted(found, key=lambda method: -accuracy[method])
    lines = ["| method | ACC | NMI | ARI | clusters | seconds | seeds |", "|---|---:|---:|---:|---:|---:|---:|"]
    parts = ["\n".join([f"## {data}", "", *lines, *(_line(method, found[method]) for method in order)])]
    of_literature = {entry.where for entry in list_methods()}
    below = [m for m in order if m in of_literature and accuracy[m] <= accuracy.get("KMeans", -1.0)]
    if below:
        parts.append(_why(data, below))
    return "\n\n".join(parts)


def _why(data: str, below: Sequence[str]) -> str:
    """Why these methods are not above k-means; an error where nobody has said it."""
    if data in OF_DATA:
        return f"Not above k-means are {', '.join(below)}: {OF_DATA[data]}."
    missing = [method for method in below if method not in BELOW]
    if missing:
        raise SystemExit(f"not above k-means on {data}: {', '.join(missing)}. Say why in BELOW of {__file__}")
    return "Not above k-means, and why.\n\n" + "\n".join(f"- {method}: {BELOW[method]}." for method in below)


def _line(method: str, rows: Sequence[Row]) -> str:
    scores = " | ".join(with_spread([row[score] for row in rows], 3) for score in ("acc", "nmi", "ari"))
    clusters = sorted({row["n_clusters"] for row in rows})
    found = str(clusters[0]) if len(clusters) == 1 else f"{clusters[0]} to {clusters[-1]}"
    return f"| {method} | {scores} | {found} | {np.mean([row['seconds'] for row in rows]):.1f} | {len(rows)} |"


def _overheads(rows: Sequence[Row]) -> str:
    """Seconds of ``fit`` beside the bare loop, the latest of each method and kind of network."""
    latest = {(row["data"], row["method"], row["images"]): row for row in rows if "passes" in row}
    if not latest:
        return ""
    lines = [
        "| data | method | epochs | fit, seconds | networks alone | ratio | with the objective | ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (data, method, images), row in sorted(latest.items(), key=lambda item: item[1]["ratio"]):
        plain = [f"{row[name]:.2f}" if name in row else "" for name in ("plain_seconds", "plain_ratio")]
        epochs = f"{row['pretrain_epochs']} + {row['epochs']}" if "pretrain" in row["passes"] else str(row["epochs"])
        cells = [f"{row[name]:.2f}" for name in ("fit_seconds", "bare_seconds", "ratio")] + plain
        lines.append(" | ".join([f"| {data}{' as images' if images else ''}", method, epochs, *cells]) + " |")
    return (
        "## What clustering costs over training\n\nThe whole of `fit` beside a bare loop of the same networks, "
        "optimiser, views, batch size (256) and number of passes that makes what the networks give small, and beside "
        "one that minimises the method's objective as plain torch computes it, by `python -m bench.overhead`; ratios "
        "are medians of turns, of one thread unless said. Vectors go through networks so small that a loss over all "
        "pairs of a batch costs as much. k-means at the start or end, twenty times from other centers, stands in no "
        "bare loop; the objective of N2D is its manifold, by UMAP, with scikit-learn's mixture on it.\n\n"
        + "\n".join(lines)
    )


if __name__ == "__main__":
    main()
