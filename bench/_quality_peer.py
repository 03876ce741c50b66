"""ClustPy's side of ``bench.quality``: a script for the interpreter that has ClustPy, without fastdc.

``python bench/_quality_peer.py TASK.json`` reads points (and, for a paired run, weights of network and head) from the
NumPy file that the task names, fits, and writes labels and seconds to the file that the task names.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from clustpy.deep import DCN, DEC, DKM, IDEC, N2D, VaDE
from clustpy.deep.neural_networks import FeedforwardAutoencoder
from clustpy.deep.vade import _VaDE_VAE

METHODS = {"dec": DEC, "idec": IDEC, "dcn": DCN, "dkm": DKM, "vade": VaDE, "n2d": N2D}


def main(task_file: str) -> None:
    with open(task_file, encoding="utf-8") as file:
        task: dict[str, Any] = json.load(file)
    torch.set_num_threads(task["threads"])
    given = dict(np.load(task["given"]))
    method = task["method"]
    options = {"random_state": task["seed"], "device": "cpu", **task["options"]}
    if method == "n2d":
        options |= _umap(task["n_clusters"], options.pop("manifold_params"))
    weights = {name.removeprefix("network "): given[name] for name in given if name.startswith("network ")}
    if weights:
        options["neural_network"] = _network(weights, _VaDE_VAE if method == "vade" else FeedforwardAutoencoder)
        if method != "n2d":
            options["initial_clustering_params"] = _mixture(given) if method == "vade" else _centers(given)
    model = METHODS[method](task["n_clusters"], **options)
    clock = time.process_time if task["threads"] == 1 else time.perf_counter
    start = clock()
    model.fit(given["x"])
    answer = {"labels": model.labels_, "seconds": clock() - start}
    if method != "n2d":
        own = "dec" if method == "idec" else method
        answer["soft_labels"] = getattr(model, f"{own}_labels_")
    np.savez(task["answer"], **answer)


def _umap(n_clusters: int, params: dict[str, Any]) -> dict[str, Any]:
    """N2D's manifold, and as many starts of the mixture as fastdc has, where it is not left to ClustPy's defaults."""
    import umap

    options = {"manifold_class": umap.UMAP, "manifold_params": {"n_components": n_clusters, **params}}
    return options | ({"initial_clustering_params": {"n_init": 10}} if params else {})


def _centers(given: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"init": given["head centers"], "n_init": 1}


def _mixture(given: dict[str, np.ndarray]) -> dict[str, Any]:
    """The mixture of the head, for scikit-learn's, which makes one step from it."""
    weights = np.exp(given["head logits"].astype(np.float64))
    return {
        "covariance_type": "diag",
        "max_iter": 1,
        "n_init": 1,
        "means_init": given["head means"],
        "precisions_init": np.exp(-given["head log_vars"]),
        "weights_init": weights / weights.sum(),
    }


def _network(weights: dict[str, np.ndarray], kind: type[FeedforwardAutoencoder]) -> FeedforwardAutoencoder:
    """A network of these weights: of encoder and decoder, in the order of their layers, and of log variances."""
    encoder = [value for name, value in weights.items() if name.startswith("encoder")]
    decoder = [value for name, value in weights.items() if name.startswith("decoder")]
    log_vars = [value for name, value in weights.items() if name.startswith("log_vars")]
    layers = [encoder[0].shape[1], *(weight.shape[0] for weight in encoder[::2])]
    network = kind(layers, activation_fn=torch.nn.ReLU)
    ordered = [*encoder[:-2], *decoder, *encoder[-2:], *log_vars] if log_vars else [*encoder, *decoder]
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), ordered, strict=True):
            parameter.copy_(torch.from_numpy(weight))
    network.fitted = True
    return network


if __name__ == "__main__":
    main(sys.argv[1])
