"""Every method on data that come with Python packages: ``python -m bench.methods --methods DEC IDEC --data digits``.

Each run (method, data set, seed) is appended to ``bench/results/methods/runs.jsonl`` as it ends: accuracy by the best
one-to-one map, NMI, ARI, seconds, and how many clusters have members. Parameters are the classes' defaults but for
those of ``RECIPES``, which make networks and epochs small enough for a CPU; methods whose papers are about images see
those of MNIST as such, through convolutions. Seconds of one thread are those that it computed. At the end
``bench/METHODS.md`` is made of all rows there are, as ``python -m bench.methods_report`` does.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import methods_report
from bench._data import DATA, IMAGES, Data, load
from bench._environment import cpu_stamp
from bench._timing import fit_clock
from fastdc import GaussianMixture, KMeans, SpectralClustering, methods, metrics
from fastdc.catalog import list_methods
from fastdc.networks import ConvBackbone
from fastdc.views import Augmented, RandomAffine

BASELINES = {"KMeans": KMeans, "GaussianMixture": GaussianMixture, "SpectralClustering": SpectralClustering}
SMALL = {"hidden": (256, 256), "pretrain_epochs": 60}
RECIPES: dict[str, dict[str, Any]] = {
    "KMeans": {"n_init": 10},
    "GaussianMixture": {"n_init": 5, "reg_covar": 1e-3},
    "N2D": {"hidden": (256, 256), "pretrain_epochs": 100},
    "SpectralNet": {"hidden": (256, 256)},
    "SCAN": SMALL | {"n_latent": 32, "epochs": 50},
    "DeepCluster": SMALL | {"epochs": 30},
    "SDCN": SMALL,
    "DSCNet": SMALL | {"epochs": 100},
    "IMSAT": {"hidden": (256,), "n_latent": 256},
    "IIC": {"epochs": 60, "batch_size": 64},
    "CC": {"epochs": 60},
    "SwAV": {"epochs": 60, "batch_size": 128},
    "SeLa": {"epochs": 60, "batch_size": 64, "update_interval": 30},
    "IDFD": {"epochs": 60},
    "ClusterGAN": {"epochs": 300, "learning_rate": 5e-4},
    "OptimalTransportClustering": {"epochs": 30},
    "DEPICT": {"hidden": (256, 256), "pretrain_epochs": 200, "epochs": 60},
    "DCEC": {"epochs": 50},
    "DECDA": {"pretrain_epochs": 500, "epochs": 100, "batch_size": 100, "amp": "bfloat16"},
}
NEED_IMAGES = ("DCEC", "DECDA")
OF_IMAGES = {"DeepCluster": {"n_latent": 32}}  # beside the recipe; these see transformed images, as in their papers
SEE_MNIST = ("CC", "SwAV", "SeLa", "IDFD", "IIC", "DAC")  # through ConvBackbone
OF_MNIST: dict[str, dict[str, Any]] = {  # beside the recipe
    "IIC": {"batch_size": 256},
    "SwAV": {"epochs": 40, "batch_size": 256},
    "SeLa": {"epochs": 100, "batch_size": 256, "update_interval": None},
    "SCAN": {"image_shape": IMAGES["mnist5000"], "pretrain_epochs": 30, "epochs": 20, "self_epochs": 10},
    "DeepCluster": {"image_shape": IMAGES["mnist5000"], "pretrain_epochs": 30, "epochs": 20},
    "DSCNet": {"epochs": 40},
    "ClusterGAN": {"epochs": 150},
}


def options_of(method: str, data: Data, seed: int) -> dict[str, Any]:
    """Parameters of a run beside the class's defaults; MNIST is learnt in bfloat16."""
    options = dict(RECIPES.get(method, {}))
    if data.name == "mnist5000" and method not in BASELINES:
        options |= {"amp": "bfloat16"} | OF_MNIST.get(method, {})
        if method in SEE_MNIST:
            shape, generator = IMAGES[data.name], torch.Generator().manual_seed(seed)
            options |= {"image_shape": shape, "autoencoder": ConvBackbone(shape, generator=generator)}
    if method == "VaDE" and data.name not in IMAGES:
        options["likelihood"] = "gaussian"
    if method in NEED_IMAGES:
        options["image_shape"] = IMAGES[data.name]
    if method in OF_IMAGES and data.name in IMAGES:
        options |= OF_IMAGES[method] | {"views": Augmented(RandomAffine(IMAGES[data.name]), n_views=1)}
    return options


def _named(value: object) -> str:
    """What stands in a row: of a network its kind."""
    return type(value).__name__ if isinstance(value, torch.nn.Module) else str(value)


def run(method: str, data: Data, seed: int, threads: int) -> dict[str, Any]:
    """One fit and its scores."""
    kind, options = BASELINES.get(method) or getattr(methods, method), options_of(method, data, seed)
    model = kind(len(np.unique(data.truth)), random_state=seed, **options)
    clock = fit_clock(threads)
    started = clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a collapse shows in n_clusters
        labels = model.fit_predict(data.x)
    seconds = clock() - started
    scores = metrics.evaluate(data.truth, labels)
    return {
        "method": method,
        "data": data.name,
        "seed": seed,
        "acc": scores["clustering_accuracy"],
        "nmi": scores["normalized_mutual_info"],
        "ari": scores["adjusted_rand_index"],
        "n_clusters": scores["n_clusters"],
        "seconds": seconds,
        "options": {name: _named(value) for name, value in options.items()},
        **cpu_stamp(threads),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    known = [*BASELINES, *(entry.where for entry in list_methods())]
    parser = argparse.ArgumentParser("python -m bench.methods", description="Quality of the methods on small data.")
    add = parser.add_argument
    add("--methods", nargs="+", choices=known, default=known)
    add("--data", nargs="+", choices=DATA, default=["digits"])
    add("--seeds", type=int, nargs="+", default=list(range(5)))
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, default=methods_report.RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.data:
        data = load(name)
        for method in options.methods:
            if method in NEED_IMAGES and name not in IMAGES:
                continue
            for seed in options.seeds:
                row = run(method, data, seed, options.threads)
                with open(options.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name} {method} {seed}: ACC {row['acc']:.3f} NMI {row['nmi']:.3f} {row['seconds']:.1f} s")
    if options.out == methods_report.RESULTS:
        methods_report.main()


if __name__ == "__main__":
    main()
