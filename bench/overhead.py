"""What clustering costs over training: ``python -m bench.overhead --methods DEC IDEC CC``.

The whole of ``fit`` (input check, pre-training, initialisation, training with refreshes, final labels) against a bare
loop of the same networks (projections and classifiers too), optimiser, views and batch size over the same number of
steps, with no clustering at all: it makes what the networks give for all views small, and reconstructs where the method
does. Both sides are run in turn; a row holds the medians and the median ratio of a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from bench._environment import ROOT, cpu_stamp
from bench.methods import IMAGES, NEED_IMAGES
from bench.quality import load
from fastdc import methods
from fastdc.catalog import list_methods
from fastdc.training import Alternate, Batch, Term, Turn, private_randomness

SEED = 0


def bare_loop(x: Tensor, model: Any) -> None:
    """The training stages of a method as plain torch."""
    with private_randomness(SEED, x.device):
        generator = torch.Generator().manual_seed(SEED)
        model.n_features_in_ = x.shape[1]
        network = model.make_network(x.shape[1], generator)
        head = model.make_head(network.encode(x[:2]).shape[1])
        for stage in model.stages(head):
            if isinstance(stage, Alternate):
                for turn in stage.turns:
                    _bare_stage(x, network, stage, turn, model.batch_size or len(x), generator)


def _bare_stage(
    x: Tensor, network: nn.Module, stage: Alternate, turn: Turn, batch_size: int, generator: torch.Generator
) -> None:
    reconstructs = any(getattr(part, "name", None) == "reconstruction" for part in turn.whole.terms.modules())
    heads = _heads(turn.whole.terms)
    parameters = [*network.parameters(), *turn.whole.terms.parameters()]
    optimizer = torch.optim.Adam({p: None for p in parameters if p.requires_grad}, lr=1e-4, fused=True)
    network.train()
    for _ in range(stage.epochs):
        order = torch.randperm(len(x), generator=generator)
        for step, rows in enumerate(order.tensor_split(-(-len(x) // batch_size))):
            if step % turn.every == 0:
                optimizer.zero_grad()
                batch = x[rows]
                views = [batch] if stage.views is None else stage.views(Batch(network, batch, rows, x), x)
                _small(network, heads, views, reconstructs).backward()
                optimizer.step()


def _heads(terms: nn.ModuleList) -> list[nn.Module]:
    """Networks on top of the embedding: what terms hold that maps it and is trained."""
    parts = dict.fromkeys(part for term in terms for part in term.children() if not isinstance(part, Term))
    return [
        part
        for part in parts
        if type(part).forward is not nn.Module.forward and next(part.parameters(), None) is not None
    ]


def _small(network: Any, heads: Sequence[nn.Module], views: Sequence[Tensor], reconstructs: bool) -> Tensor:
    """A loss of next to nothing beside the networks."""
    losses = []
    for view in views:
        z = network.encode(view)
        parts = [z.square().mean(), *(head(z).square().mean() for head in heads)]
        if reconstructs:
            parts.append(mse_loss(network.decode(z), view))
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
        if method in NEED_IMAGES:
            given["image_shape"] = IMAGES[data.name]
        model = kind(len(np.unique(data.truth)), **given)
        sides: dict[str, Callable[[], object]] = {
            "fit": lambda model=model: model.fit(x),  # type: ignore[misc]
            "bare": lambda model=model: bare_loop(x, clone(model)),  # type: ignore[misc]
        }
        seconds = _interleaved(sides, options.repeats)
        row = {
            "kind": "overhead",
            "data": data.name,
            "method": method,
            "pretrain_epochs": options.pretrain_epochs,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            **{f"{side}_seconds": statistics.median(values) for side, values in seconds.items()},
            "ratio": statistics.median(a / b for a, b in zip(seconds["fit"], seconds["bare"], strict=True)),
            "repeats": options.repeats,
            **cpu_stamp(options.threads),
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{data.name} {method}: fit {row['fit_seconds']:.2f} s, bare loop {row['bare_seconds']:.2f} s, "
            f"{row['ratio']:.3f} times"
        )


def _interleaved(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, run in turn after a first round that does not count."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(repeats + 1):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            if round_number > 0:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.overhead", description="fit against a bare loop.")
    add = parser.add_argument
    add("--data", choices=("digits", "mnist5000"), default="digits")
    add("--methods", nargs="+", choices=[entry.where for entry in list_methods()], default=["DEC", "IDEC"])
    add("--pretrain-epochs", type=int, default=50)
    add("--epochs", type=int, default=50)
    add("--batch-size", type=int, default=256)
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=ROOT / "bench" / "results" / "methods" / "overhead.jsonl")
    return parser


if __name__ == "__main__":
    main()
