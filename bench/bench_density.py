"""How many points lie within a radius of each: what DBSCAN begins with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows

CHECKED = 200  # points whose neighbours are counted in float64
GROUPS = 30
SHAPES = [{"n": 50_000, "d": 8}, {"n": 200_000, "d": 2}, {"n": 20_000, "d": 64}]
TINY = {"n": 300, "d": 5}
CHUNK = 1024  # rows that plain torch treats at a time
ROUNDED = 0.02  # share of the points that have one at the boundary, where products decide it


def inputs(n: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Groups of points around centers some deviations apart, and half a deviation's distance in each feature."""
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(GROUPS, d, generator=generator)
    x = centers[torch.randint(GROUPS, (n,), generator=generator)] + torch.randn(n, d, generator=generator)
    return {"x": x.to(device, dtype), "radius": (d / 2) ** 0.5}


def as_numpy(given: Inputs) -> Inputs:
    return {"x": given["x"].cpu().double().numpy(), "radius": given["radius"]}


def truth(given: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    x = given["x"].double()
    which = torch.arange(0, len(x), -(-len(x) // CHECKED), device=x.device)
    counts = [((x - row).square().sum(1).sqrt() <= given["radius"]).sum() for row in x[which]]
    return {"counts": Rows(which, torch.stack(counts))}


def share_different(got: Tensor, expected: Tensor, given: Inputs) -> float:
    return float((got.to(expected) != expected).double().mean())


def cost(n: int, d: int, itemsize: int, mode: str) -> Cost:
    """Of all pairs, both of each at once; points that lie apart need not be compared."""
    return Cost(flops=float(n) * n * d, bytes_moved=float(n * (d * itemsize + 8)))


def make_ours(backend: str) -> Callable[..., Any]:
    from fastdc import radius_counts

    return partial(radius_counts, backend=backend)


def torch_chunks(x: Tensor, radius: float) -> Tensor:
    """The best plain form: products of a chunk of rows with all points."""
    halves = x.square().sum(1) / 2
    found = []
    for part in x.split(CHUNK):
        limit = (radius**2 - part.square().sum(1, keepdim=True)) / 2
        found.append((torch.addmm(halves, part, x.T, alpha=-1) <= limit).sum(1))
    return torch.cat(found)


def make_scipy() -> Callable[..., Any]:
    from scipy.spatial import cKDTree

    def count(x: Any, radius: float) -> Any:
        tree = cKDTree(x)
        return torch.from_numpy(tree.query_ball_point(x, radius, return_length=True, workers=torch.get_num_threads()))

    return count


def reference_bytes(n: int, d: int, itemsize: int) -> int:
    """Three times the differences of a chunk, or of one row where those are more."""
    return 3 * max(1 << 26, 8 * n * d)


BENCHES = [
    Bench(
        op="radius_counts",
        shapes=SHAPES,
        tiny=TINY,
        inputs=inputs,
        outputs=("counts",),
        truth=truth,
        cost=cost,
        errors={"counts": share_different},
        tolerances=dict.fromkeys((torch.float64, torch.float32, torch.float16, torch.bfloat16), 0.0),
        providers={
            "reference": Provider(partial(make_ours, "reference"), reference_bytes),
            "numba": Provider(partial(make_ours, "numba"), devices=("cpu",)),
            "triton": Provider(partial(make_ours, "triton"), devices=("cuda",)),
            "torch": Provider(lambda: torch_chunks, lambda n, d, itemsize: 3 * CHUNK * n * itemsize, tolerance=ROUNDED),
            "scipy": Provider(make_scipy, devices=("cpu",), prepare=as_numpy),
        },
    )
]
