"""ClustPy's side of ``bench.quality``: a script for the interpreter that has ClustPy, without fastdc.

``python bench/_quality_peer.py TASK.json`` reads points (and, for a paired run, network weights and centers)
from the NumPy file that the task names, fits, and writes labels and seconds to the file that the task names.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from clustpy.deep import DEC, IDEC
from clustpy.deep.neural_networks import FeedforwardAutoencoder

METHODS = {"dec": DEC, "idec": IDEC}


def main(task_file: str) -> None:
    with open(task_file, encoding="utf-8") as file:
        task: dict[str, Any] = json.load(file)
    torch.set_num_threads(task["threads"])
    given = np.load(task["given"])
    options = {"random_state": task["seed"], "device": "cpu", **task["options"]}
    if "centers" in given:
        options |= {
            "neural_network": _network(given),
            "initial_clustering_params": {"init": given["centers"], "n_init": 1},
        }
    model = METHODS[task["method"]](task["n_clusters"], **options)
    start = time.perf_counter()
    model.fit(given["x"])
    seconds = time.perf_counter() - start
    np.savez(task["answer"], labels=model.labels_, soft_labels=model.dec_labels_, seconds=seconds)


def _network(given: Any) -> FeedforwardAutoencoder:
    """The network of the task: encoder and decoder weights in the order of its layers."""
    weights = [given[f"weight{i}"] for i in range(sum(name.startswith("weight") for name in given))]
    encoder = weights[: len(weights) // 2 : 2]
    layers = [encoder[0].shape[1], *(weight.shape[0] for weight in encoder)]
    network = FeedforwardAutoencoder(layers, activation_fn=torch.nn.ReLU)
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(weight))
    network.fitted = True
    return network


if __name__ == "__main__":
    main(sys.argv[1])
