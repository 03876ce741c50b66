"""Quality of deep methods beside ClustPy: ``python -m bench.quality --peer-python PYTHON``.

Two comparisons, over seeds:

paired
    Both sides start from the same pre-trained weights and the same centers (of VaDE the same mixture), and train
    equally long with ClustPy's recipe (DEC's P from each batch, Adam at 1e-4, batches of 256, no early stop). What
    differs is the implementation and the order of the batches; of VaDE also the objective, in which ClustPy weighs the
    reconstruction 256 times as much as the paper does, and how the closing mixture, which both have, is regularised.
    N2D has UMAP with the paper's parameters on both sides. A row holds the mean difference of ACC and NMI, ours minus
    theirs, with its standard error: against ``labels_`` (ClustPy's closing k-means or mixture) and against the
    assignment of the method itself.
defaults
    Each side with its own defaults, pre-training included: ACC, NMI and seconds of both. (N2D has UMAP on both: the
    default of ClustPy fails for 10 dimensions.)

Seconds of one thread are those that it computed, whatever else the machine did. Every run and every summary is
appended to the output as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench._data import Data, load
from bench._environment import ROOT, cpu_stamp
from bench._timing import fit_clock
from fastdc import DCN, DEC, DKM, IDEC, N2D, VaDE
from fastdc.methods import OptimalTransportClustering
from fastdc.metrics import clustering_accuracy, normalized_mutual_info

COMPARISONS = ("paired", "defaults")
CLUSTPY_PRETRAIN_EPOCHS, CLUSTPY_EPOCHS = 100, 150  # its defaults
CLUSTPY_LEARNING_RATE, CLUSTPY_WEIGHT = 1e-4, 0.1  # the latter of the clustering loss
UMAP = {"n_neighbors": 20, "min_dist": 0.0}  # of N2D's paper


class Method(NamedTuple):
    """Our class, the one whose pre-training it starts from, and ClustPy's recipe as our options.

    ``options`` takes the number of features: ClustPy sums the reconstruction error over them, IDEC averages it.
    """

    kind: type[Any]
    start: Callable[..., Any] = OptimalTransportClustering  # its network begins with weights such as ClustPy's
    options: Callable[[int], dict[str, Any]] = lambda n_features: {}


AT_THE_START = {"update_interval": 10**9}  # is the only refresh
STUDENT_T = {"target": "batch", "scale": 1.0} | AT_THE_START
METHODS = {
    "dec": Method(DEC, options=lambda n_features: STUDENT_T),
    "idec": Method(IDEC, options=lambda n_features: STUDENT_T | {"gamma": CLUSTPY_WEIGHT / n_features}),
    "dcn": Method(DCN, options=lambda _: AT_THE_START | {"lam": CLUSTPY_WEIGHT}),
    "dkm": Method(DKM, options=lambda _: AT_THE_START | {"lam": CLUSTPY_WEIGHT}),
    "vade": Method(VaDE, partial(VaDE, covariance_type="diag")),
    "n2d": Method(N2D),
}


@dataclass(frozen=True)
class Settings:
    """What all runs share. None as epochs means the defaults of either side."""

    threads: int
    pretrain_epochs: int | None = None
    epochs: int | None = None
    peer_python: str | None = None


def paired(data: Data, method: str, seed: int, settings: Settings) -> Iterator[dict[str, Any]]:
    """One seed of the paired comparison: our run, then theirs from the same start."""
    n_clusters = len(np.unique(data.truth))
    epochs = settings.epochs or CLUSTPY_EPOCHS
    pretrain_epochs = settings.pretrain_epochs or CLUSTPY_PRETRAIN_EPOCHS
    kind, begin, options = METHODS[method]
    start = pretrained(data.name, begin, seed, pretrain_epochs)
    model = kind(
        n_clusters,
        autoencoder=start.network_,
        pretrain_epochs=0,
        epochs=epochs,
        learning_rate=CLUSTPY_LEARNING_RATE,
        tol=None,
        random_state=seed,
        **options(data.x.shape[1]),
    )
    yield {"side": "fastdc", **_timed_fit(model, data, settings.threads)}
    if settings.peer_python:
        weights = {f"network {name}": p.detach().numpy() for name, p in start.network_.named_parameters()}
        head = {f"head {name}": p.detach().numpy() for name, p in start.head_.named_parameters()}
        peers: dict[str, Any] = {"manifold_params": UMAP} if method == "n2d" else {"clustering_epochs": epochs}
        yield from _ask_peer(data, method, seed, settings, {"x": data.x, **head, **weights}, peers)


@cache
def pretrained(name: str, kind: Callable[..., Any], seed: int, epochs: int) -> Any:
    """Where both sides start: a network trained for so many epochs, and centers by k-means or a mixture."""
    data = load(name)
    return kind(len(np.unique(data.truth)), pretrain_epochs=epochs, epochs=0, random_state=seed).fit(data.x)


def defaults(data: Data, method: str, seed: int, settings: Settings) -> Iterator[dict[str, Any]]:
    """One seed of either side as it comes."""
    ours: dict[str, Any] = {"pretrain_epochs": settings.pretrain_epochs, "epochs": settings.epochs}
    theirs: dict[str, Any] = {"pretrain_epochs": settings.pretrain_epochs, "clustering_epochs": settings.epochs}
    if method == "n2d":
        theirs = {"pretrain_epochs": settings.pretrain_epochs, "manifold_params": {}}
    given = {name: value for name, value in ours.items() if value is not None}
    model = METHODS[method].kind(len(np.unique(data.truth)), random_state=seed, **given)
    yield {"side": "fastdc", **_timed_fit(model, data, settings.threads)}
    if settings.peer_python:
        options = {name: value for name, value in theirs.items() if value is not None}
        yield from _ask_peer(data, method, seed, settings, {"x": data.x}, options)


def _timed_fit(model: Any, data: Data, threads: int) -> dict[str, Any]:
    clock = fit_clock(threads)
    start = clock()
    labels = model.fit(data.x).labels_
    return {**_scores(data, labels), "seconds": clock() - start, "epochs": model.n_iter_}


def _scores(data: Data, labels: np.ndarray) -> dict[str, float]:
    return {
        "acc": clustering_accuracy(data.truth, labels),
        "nmi": normalized_mutual_info(data.truth, labels),
    }


def _ask_peer(
    data: Data,
    method: str,
    seed: int,
    settings: Settings,
    given: dict[str, np.ndarray],
    options: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Rows of one fit of ClustPy in its interpreter: of its final labels, and of the method's own where they differ."""
    assert settings.peer_python is not None
    with tempfile.TemporaryDirectory() as folder:
        paths = {"given": os.path.join(folder, "given.npz"), "answer": os.path.join(folder, "answer.npz")}
        np.savez(paths["given"], **given)  # type: ignore[arg-type]
        task = paths | {
            "method": method,
            "n_clusters": len(np.unique(data.truth)),
            "seed": seed,
            "threads": settings.threads,
            "options": options,
        }
        task_file = Path(folder) / "task.json"
        task_file.write_text(json.dumps(task), encoding="utf-8")
        done = subprocess.run(
            [settings.peer_python, str(ROOT / "bench" / "_quality_peer.py"), str(task_file)],
            env={**os.environ, "OMP_NUM_THREADS": str(settings.threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"ClustPy failed on {data.name}, seed {seed}: {done.stderr.strip()[-800:]}")
        answer = np.load(paths["answer"])
        seconds = float(answer["seconds"])
        yield {"side": "clustpy", **_scores(data, answer["labels"]), "seconds": seconds}
        if "soft_labels" in answer:
            yield {"side": "clustpy, soft", **_scores(data, answer["soft_labels"]), "seconds": seconds}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of each side, and the mean paired differences with their standard errors."""
    sides = {side: [r for r in runs if r["side"] == side] for side in dict.fromkeys(r["side"] for r in runs)}
    summary: dict[str, Any] = {"seeds": len(sides["fastdc"])}
    for side, rows in sides.items():
        for name in ("acc", "nmi", "seconds"):
            values = np.array([row[name] for row in rows])
            summary[f"{side}: {name}"] = float(values.mean())
            summary[f"{side}: {name} spread"] = _spread(values)
    for side, rows in sides.items():
        if side == "fastdc":
            continue
        for name in ("acc", "nmi"):
            difference = np.array([a[name] - b[name] for a, b in zip(sides["fastdc"], rows, strict=True)])
            error = _spread(difference)
            summary[f"minus {side}: {name}"] = float(difference.mean())
            summary[f"minus {side}: {name} error"] = error and error / len(difference) ** 0.5
    return summary


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation over seeds; None of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparisons that the arguments describe."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    seeds = 1 if options.smoke else options.seeds
    epochs = (2, 2) if options.smoke else (options.pretrain_epochs, options.epochs)
    settings = Settings(options.threads, *epochs, options.peer_python)
    machine = cpu_stamp(options.threads)
    for method in options.methods:  # machine code of the kernels is built or loaded before the clock runs
        METHODS[method].kind(2, hidden=(4,), pretrain_epochs=1, epochs=1).fit(np.eye(24, dtype=np.float32))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a", encoding="utf-8") as file:

        def put(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        for data in map(load, options.data):
            for method in options.methods:
                for comparison in options.comparisons:
                    about = {"data": data.name, "method": method, "comparison": comparison}
                    compare = {"paired": paired, "defaults": defaults}[comparison]
                    runs = []
                    for seed in range(seeds):
                        for run in compare(data, method, seed, settings):
                            runs.append(run)
                            put({"kind": "run", **about, "seed": seed, **run})
                    summary = summarise(runs)
                    lengths = {"pretrain_epochs": settings.pretrain_epochs, "epochs": settings.epochs}
                    put({"kind": "summary", **about, **lengths, **summary, **machine})
                    _print(about, summary)


def _print(about: dict[str, Any], summary: dict[str, Any]) -> None:
    print(" ".join(about.values()))
    for name, value in summary.items():
        print(f"  {name:28}", "-" if value is None else f"{value:.4g}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.quality", description="Quality beside ClustPy.")
    add = parser.add_argument
    add("--data", nargs="+", choices=("digits", "mnist5000"), default=["digits"])
    add("--methods", nargs="+", choices=tuple(METHODS), default=["dec", "idec"])
    add("--comparisons", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    add("--seeds", type=int, default=10)
    add("--pretrain-epochs", type=int, help="of both sides; otherwise what the comparison says")
    add("--epochs", type=int, help="of refinement, both sides")
    add("--threads", type=int, default=2)
    add("--peer", choices=("clustpy",), default="clustpy", help="the library beside")
    add("--peer-python", help="interpreter that has the peer; without it only our side runs")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "methods" / "quality.jsonl")
    add("--smoke", action="store_true", help="one seed, two epochs: does it run at all")
    return parser


if __name__ == "__main__":
    main()
