"""What clustering costs over training: ``python -m bench.overhead --methods DEC IDEC CC``.

The whole of ``fit`` (input check, pre-training, initialisation, training with refreshes, final labels) against a bare
loop of the same networks (projections and classifiers too), optimiser, views and batch size over the same number of
steps, with no clustering at all: it makes what the networks give small. In each step the rows go through encoder and
decoder as often as in the method, which is counted in a short fit: an adversarial direction is a pass, too. A second
loop minimises the method's objective, as plain torch computes it, and unfolds N2D's manifold, in which its clusters
are, by UMAP and scikit-learn's mixture. ClusterGAN, a game of three networks, has no such loops.

The sides are run in turn; a row holds the medians and the median ratios of a turn. One thread is timed by the seconds
that the process computed, more by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from bench._data import IMAGES, load
from bench._environment import ROOT, cpu_stamp
from bench._timing import fit_clock
from bench.methods import NEED_IMAGES
from fastdc import methods, use_backend
from fastdc.catalog import list_methods
from fastdc.kernels.graph import Adjacency
from fastdc.methods._graphs import Link
from fastdc.methods._manifolds import Unfold
from fastdc.networks import SelfExpression
from fastdc.training import Alternate, Batch, Objective, Term, Turn, embed, private_randomness

SEED = 0
MEASURED = [entry.where for entry in list_methods() if entry.where != "ClusterGAN"]


@dataclass
class Passes:
    """How often the rows of a batch go through the parts of a network, and how often with no gradient to come."""

    encoder: int = 0
    decoder: int = 0
    silent: int = 0


def count_passes(x: Tensor, model: Any) -> dict[str, Passes]:
    """Passes in a step of each stage, from a fit of one epoch a stage."""
    counted, found = Passes(), dict[str, Passes]()
    given = model.get_params(deep=False)
    short = {name: min(1, given[name]) for name in given if name == "epochs" or name.endswith("_epochs")}

    def seen(record: dict[str, Any]) -> None:
        if "loss" in record:
            found[record["stage"]] = Passes(*(round(rows / len(x)) for rows in vars(counted).values()))
            counted.encoder = counted.decoder = counted.silent = 0

    def hooked(n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        network = type(short_model).make_network(short_model, n_features, generator)
        for part in ("encoder", "decoder"):
            first = _first_layer(getattr(network, part, network if part == "encoder" else None))
            if first is not None:
                first.register_forward_hook(partial(add, part))
        return network

    def add(part: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer.training:  # not the embedding of all rows
            kind = part if torch.is_grad_enabled() else "silent"
            setattr(counted, kind, getattr(counted, kind) + len(output))

    short_model = clone(model).set_params(**short, callbacks=[seen])
    with mock.patch.object(short_model, "make_network", hooked):
        short_model.fit(x)
    return found


def _first_layer(network: nn.Module | None) -> nn.Module | None:
    """The first module that has weights of its own."""
    modules = () if network is None else network.modules()
    return next((module for module in modules if next(module.parameters(recurse=False), None) is not None), None)


def bare_loop(x: Tensor, model: Any, passes: Mapping[str, Passes] | None) -> None:
    """The training stages of a method as plain torch; without ``passes`` it minimises the method's objective."""
    sparse = mock.patch("fastdc.networks.graph.propagate", _sparse_product)
    with private_randomness(SEED, x.device), use_backend("reference"), sparse:
        generator = torch.Generator().manual_seed(SEED)
        model.n_features_in_ = x.shape[1]
        network = model.make_network(x.shape[1], generator)
        head = model.make_head(network.encode(x[:2]).shape[1])
        for parameter in head.parameters():
            if parameter.isnan().any():  # centers that no initialisation has placed
                nn.init.normal_(parameter, generator=generator)
        if isinstance(head, SelfExpression):
            head.start(len(x), 0.0)
        for stage in model.stages(head):
            if isinstance(stage, Link) and passes is None:
                stage.run(SimpleNamespace(data=x))  # type: ignore[arg-type]
            if isinstance(stage, Unfold) and passes is None:
                _unfold(stage, embed(network, x).numpy())
            if isinstance(stage, Alternate):
                batch_size = len(x) if stage.whole else model.batch_size or len(x)
                for turn in stage.turns:
                    given = None if passes is None else passes[stage.stage]
                    _bare_stage(x, network, stage, turn, batch_size, given, generator)


def _bare_stage(
    x: Tensor,
    network: nn.Module,
    stage: Alternate,
    turn: Turn,
    batch_size: int,
    passes: Passes | None,
    generator: torch.Generator,
) -> None:
    objective, heads = turn.whole, _heads(turn.whole.terms)
    parameters = [*network.parameters(), *objective.terms.parameters()]
    optimizer = torch.optim.Adam({p: None for p in parameters if p.requires_grad}, lr=1e-4, fused=True)
    interval = stage.update_interval or stage.refresh_epochs * -(-len(x) // batch_size)
    network.train()
    steps = count()
    for epoch in range(stage.epochs):
        objective.start_epoch(epoch / stage.epochs)
        order = torch.randperm(len(x), generator=generator)
        for rows in order.tensor_split(-(-len(x) // batch_size)):
            step = next(steps)
            if step % turn.every == 0:
                optimizer.zero_grad()
                batch = Batch(network, x[rows], rows, x, stage.views)
                if passes is None:
                    loss = _plain(objective, batch, refresh=step % interval == 0)
                else:
                    with torch.no_grad():
                        for _ in range(passes.silent):
                            network.encode(batch.x)  # type: ignore[operator]
                    forms = [*(view.x for view in batch.views), *[batch.x] * passes.encoder]
                    loss = _small(network, heads, forms[: passes.encoder], passes)
                loss.backward(inputs=[p for p in parameters if p.requires_grad])
                optimizer.step()


def _unfold(stage: Unfold, z: np.ndarray) -> None:
    """A manifold and a mixture on it, by what scripts take for them."""
    from umap import UMAP

    places = UMAP(**stage.options, random_state=SEED, n_jobs=1).fit_transform(z)
    mixture = GaussianMixture(len(stage.head.means), n_init=stage.n_init, random_state=SEED)  # of full covariances
    mixture.fit(places)


def _sparse_product(graph: Adjacency, x: Tensor) -> Tensor:
    """What scripts propagate by; the op's definition takes edges one by one."""
    return torch.sparse_csr_tensor(graph.indptr, graph.columns, graph.values, (len(graph.indptr) - 1, len(x))) @ x


def _plain(objective: Objective, batch: Batch, refresh: bool) -> Tensor:
    """The method's objective; ops within compute it by their definitions in plain torch."""
    refreshed = [term for term in objective.terms if term.needs_refresh] if refresh else []
    if refreshed:
        z = embed(batch.network, batch.data)
        for term in refreshed:
            term.refresh(z)  # type: ignore[operator]
    return objective(batch)[0]


def _heads(terms: nn.ModuleList) -> list[nn.Module]:
    """Networks on top of the embedding: what terms hold that maps it and is trained."""
    parts = dict.fromkeys(part for term in terms for part in term.children() if not isinstance(part, Term))
    return [
        part
        for part in parts
        if type(part).forward is not nn.Module.forward and next(part.parameters(), None) is not None
    ]


def _small(network: Any, heads: Sequence[nn.Module], forms: Sequence[Tensor], passes: Passes) -> Tensor:
    """A loss of next to nothing beside the networks."""
    losses = []
    for number, form in enumerate(forms):
        z = network.encode(form)
        parts = [z.square().mean(), *(head(z).square().mean() for head in heads)]
        if number < passes.decoder:
            parts.append(mse_loss(network.decode(z), form))
        losses.append(torch.stack(parts).sum())
    return torch.stack(losses).mean()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and append a row for each method."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = load(options.data)
    x = torch.from_numpy(data.x)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        kind = getattr(methods, method)
        given = {"epochs": options.epochs, "batch_size": options.batch_size, "tol": None, "random_state": SEED}
        if "pretrain_epochs" in kind._get_param_names():
            given["pretrain_epochs"] = options.pretrain_epochs
        if method in NEED_IMAGES or (options.images and "image_shape" in kind._get_param_names()):
            given["image_shape"] = IMAGES[data.name]
        model = kind(len(np.unique(data.truth)), **given)
        passes = count_passes(x, model)
        sides: dict[str, Callable[[], object]] = {
            "fit": lambda model=model: model.fit(x),  # type: ignore[misc]
            "bare": lambda model=model, passes=passes: bare_loop(x, clone(model), passes),  # type: ignore[misc]
            "plain": lambda model=model: bare_loop(x, clone(model), None),  # type: ignore[misc]
        }
        seconds = _interleaved(sides, options.repeats, fit_clock(options.threads))
        row = {
            "kind": "overhead",
            "data": data.name,
            "method": method,
            "pretrain_epochs": options.pretrain_epochs,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "images": "image_shape" in given,
            "passes": {stage: vars(counted) for stage, counted in passes.items()},
            **{f"{side}_seconds": statistics.median(values) for side, values in seconds.items()},
            "ratio": _ratio(seconds["fit"], seconds["bare"]),
            "plain_ratio": _ratio(seconds["fit"], seconds["plain"]),
            "repeats": options.repeats,
            **cpu_stamp(options.threads),
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{data.name} {method}: fit {row['fit_seconds']:.2f} s, bare loop {row['bare_seconds']:.2f} s, "
            f"{row['ratio']:.3f} times; with the objective {row['plain_seconds']:.2f} s, {row['plain_ratio']:.3f} times"
        )


def _interleaved(
    sides: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each side, run in turn after a first round that does not count."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(repeats + 1):
        for side, run in sides.items():
            start = clock()
            run()
            if round_number > 0:
                seconds[side].append(clock() - start)
    return seconds


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.overhead", description="fit against a bare loop.")
    add = parser.add_argument
    add("--data", choices=("digits", "mnist5000"), default="digits")
    add("--methods", nargs="+", choices=MEASURED, default=MEASURED)
    add("--images", action="store_true", help="networks for images, where the method has them")
    add("--pretrain-epochs", type=int, default=50)
    add("--epochs", type=int, default=50)
    add("--batch-size", type=int, default=256)
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=ROOT / "bench" / "results" / "methods" / "overhead.jsonl")
    return parser


if __name__ == "__main__":
    main()
