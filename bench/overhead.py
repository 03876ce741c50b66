"""What clustering costs over training: ``python -m bench.overhead``.

The whole of ``fit`` (input check, pre-training, k-means, refinement with refreshes, final labels) against a
bare loop of the same network, optimiser and batch size over the same number of steps, with no clustering at
all: in place of the refinement of DEC it trains the encoder to small embeddings, in place of IDEC's the
autoencoder. Both sides are run in turn; a row holds the medians and the median ratio of a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from bench._environment import ROOT, cpu_stamp
from bench.quality import METHODS, load
from fastdc.networks import MLPAutoencoder

SEED = 0


def bare_loop(x: Tensor, method: str, pretrain_epochs: int, epochs: int, batch_size: int) -> None:
    """Pre-training and as many steps again, as plain torch."""
    generator = torch.Generator().manual_seed(SEED)
    network = MLPAutoencoder(x.shape[1], generator=generator)

    def reconstruction(batch: Tensor) -> Tensor:
        return mse_loss(network(batch), batch)

    def small_embedding(batch: Tensor) -> Tensor:
        return network.encode(batch).square().mean()

    refined = small_embedding if method == "dec" else reconstruction
    for loss_of, n_epochs in ((reconstruction, pretrain_epochs), (refined, epochs)):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
        for _ in range(n_epochs):
            order = torch.randperm(len(x), generator=generator)
            for rows in order.tensor_split(-(-len(x) // batch_size)):
                optimizer.zero_grad()
                loss_of(x[rows]).backward()
                optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and append a row for each method."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = load(options.data)
    x = torch.from_numpy(data.x)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        model = METHODS[method](
            10,
            pretrain_epochs=options.pretrain_epochs,
            epochs=options.epochs,
            batch_size=options.batch_size,
            tol=None,
            random_state=SEED,
        )
        sides: dict[str, Callable[[], object]] = {
            "fit": lambda model=model: model.fit(x),  # type: ignore[misc]
            "bare": lambda method=method: bare_loop(  # type: ignore[misc]
                x, method, options.pretrain_epochs, options.epochs, options.batch_size
            ),
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
    add("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    add("--pretrain-epochs", type=int, default=50)
    add("--epochs", type=int, default=50)
    add("--batch-size", type=int, default=256)
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=ROOT / "bench" / "results" / "methods" / "overhead.jsonl")
    return parser


if __name__ == "__main__":
    main()
