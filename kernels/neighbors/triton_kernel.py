"""GPU kernels: candidates by products, measured by differences in float64, and searched anew where in doubt.

A kernel keeps the points of least score of each query in registers while it runs over tiles of points; for more
neighbours than it has places it runs again beyond the last one found. Where queries are too few to fill a GPU,
several programs share the points of a query, and the best of what they have kept are kept. A query is sure of its
neighbours when the farthest of them, with all that rounding may have done to a product, still beats the last
candidate; the others, few if any, are searched by differences alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import ALL_REGISTERS, chip_of, other_splits
from fastdc.kernels.neighbors import triton_tiles as tiles
from fastdc.kernels.neighbors.points import METRICS, distances_of, is_finite_row, keys_of, metric_rows
from fastdc.kernels.neighbors.reference import largest_key
from fastdc.kernels.neighbors.rescore import CHUNK_BYTES, best_keys

MOST_PLACES = {4: 64, 8: 32}  # candidates that one launch keeps for a query, by the bytes of a score
LEAST_POINTS = 8  # of a part, for each candidate that is kept of it, where queries are too few to fill a GPU
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TINY = {torch.float32: 1e-37, torch.float64: 1e-300}
REDUCED = ("tf32", "bf16")  # precisions that may miss a neighbour
SPLIT_ERROR = {"ieee": (1, 16), "tf32x3": (2, 64), "bf16x6": (2, 64)}  # of a product: (a d + b) units


class Launch(NamedTuple):
    """Tile and warps of a kernel."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int


class Scores(NamedTuple):
    """Rows as products want them: shifted and scaled to numbers of at most one."""

    queries: Tensor  # (m, d)
    points: Tensor  # (n, d)
    offsets: Tensor  # (n,) half the squared norms of the points; infinite where a row is not finite
    halves: Tensor  # (m,) the same of the queries, float64
    norms: Tensor  # (m,) float64
    reach: Tensor  # () the largest norm of a point
    scale: float


def launch(itemsize: int, precision: str) -> Launch:
    """Launch choices of the search for candidates, from the bytes of a score and the precision of products."""
    if itemsize == 8:
        return Launch(16, 16, 16, 4)
    return Launch(64, 16 if precision == "ieee" else 32, 16, 4)


def launch_within(itemsize: int) -> Launch:
    """The same of the search within a radius, where places are counted in int64."""
    return Launch(32, 32, 16, 4) if itemsize == 4 else Launch(16, 32, 16, 4)


def knn(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, precision: str) -> tuple[Tensor, Tensor]:
    """distances (m, n_neighbors) in the working dtype and indices, nearest first."""
    points, rows, own = _rows_of(x, queries, metric)
    scores = _scores_of(points, rows, metric)
    offered, candidates = _candidates(scores, own, min(n_neighbors + 1, len(points)), precision)
    keys, indices = best_keys(candidates, rows, points, queries is None, n_neighbors, metric)
    if precision not in REDUCED:
        margin = _margins(keys[:, -1], scores, metric, precision)
        sure = margin < offered.double().amax(dim=1) + scores.halves  # infinite where a place is free
        unsure = (is_finite_row(rows) & ~sure).nonzero()[:, 0]
        if len(unsure):
            _, exact = _exact_candidates(rows[unsure], points, own[unsure], n_neighbors, metric)
            again = best_keys(exact, rows[unsure], points, False, n_neighbors, metric)
            keys[unsure], indices[unsure] = again
    unfit = ~is_finite_row(rows)[:, None]
    keys, indices = torch.where(unfit, torch.nan, keys), torch.where(unfit, -1, indices)
    return distances_of(keys, metric, rows.dtype), indices


def radius_neighbors(
    x: Tensor, queries: Tensor | None, radius: float, metric: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr (m + 1), indices and distances in the working dtype; indices of a row rise."""
    points, rows, own = _rows_of(x, queries, metric)
    scores = _scores_of(points, rows, metric)
    limit = largest_key(radius, metric)
    m = len(rows)
    safe = "ieee" if precision in REDUCED else precision
    margin = _margins(torch.full((m,), limit, dtype=torch.float64, device=x.device), scores, metric, safe)
    bounds = torch.where(is_finite_row(rows), scores.halves - margin, torch.inf).to(rows.dtype)
    bounds = torch.nextafter(bounds, bounds.new_full((), -torch.inf))
    counts = torch.zeros(m, dtype=torch.int64, device=x.device)
    _within(scores, own, bounds, counts, None, safe)
    ends = counts.cumsum(0)
    starts = ends - counts
    candidates = torch.empty(int(ends[-1]), dtype=torch.int64, device=x.device)
    _within(scores, own, bounds, starts, candidates, safe)
    pair_rows = torch.repeat_interleave(torch.arange(m, device=x.device), counts)
    chunk = max(1, CHUNK_BYTES // (8 * points.shape[1]))
    pieces = zip(pair_rows.split(chunk), candidates.split(chunk))
    keys = torch.cat([keys_of(rows[i], points[j], metric) for i, j in pieces])
    near = keys <= limit
    counts = torch.bincount(pair_rows[near], minlength=m)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return indptr, candidates[near], distances_of(keys[near], metric, rows.dtype)


def _rows_of(x: Tensor, queries: Tensor | None, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """Points, queries, and the index that each query has among the points."""
    dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
    points = metric_rows(x, metric, dtype).contiguous()
    if queries is None:
        return points, points, torch.arange(len(points), device=x.device)
    rows = metric_rows(queries, metric, dtype).contiguous()
    return points, rows, torch.full((len(rows),), -1, dtype=torch.int64, device=x.device)


def _scores_of(points: Tensor, rows: Tensor, metric: str) -> Scores:
    finite = is_finite_row(points)
    usable = torch.where(finite[:, None], points, 0.0)
    row_fits = is_finite_row(rows)[:, None]
    if metric == "cosine":
        shift, scale = points.new_zeros(points.shape[1]).double(), 1.0
    else:
        mean = usable.mean(dim=0, dtype=torch.float64)
        shift = torch.nan_to_num(mean, posinf=0.0, neginf=0.0) if metric == "euclidean" else torch.zeros_like(mean)
        edges = torch.stack([(t - shift).abs().amax() for t in (usable, torch.where(row_fits, rows, 0.0))])
        largest = float(edges.amax())
        exponent = math.frexp(largest)[1] if math.isfinite(largest) else 1000
        scale = 2.0 ** -min(1000, max(-1000, exponent))
    factors = torch.where(finite[:, None], (points - shift) * scale, 0.0).to(points.dtype)
    row_factors = torch.where(row_fits, (rows - shift) * scale, 0.0).to(rows.dtype)
    if metric == "cosine":
        offsets, halves = (t.new_full((len(t),), 0.5, dtype=torch.float64) for t in (points, rows))
        norms, reach = 2 * halves, torch.ones((), dtype=torch.float64, device=points.device)
    else:
        norms = torch.linalg.vector_norm(row_factors, dim=1, dtype=torch.float64)
        point_norms = torch.linalg.vector_norm(factors, dim=1, dtype=torch.float64)
        reach = point_norms.amax()
        halved = 0.5 if metric == "euclidean" else 0.0
        offsets, halves = halved * point_norms.square(), halved * norms.square()
    offsets = torch.where(finite, offsets, torch.inf).to(points.dtype)
    return Scores(row_factors, factors, offsets, halves, norms, reach, scale)


def _margins(keys: Tensor, scores: Scores, metric: str, precision: str) -> Tensor:
    """Scores, plus half the query's squared norm, that points nearer than the keys cannot exceed."""
    dtype = scores.points.dtype
    slope, constant = SPLIT_ERROR[precision]
    error = (slope * scores.points.shape[1] + constant) * UNIT[dtype]
    if metric == "inner_product":
        return keys * scores.scale * scores.scale + error * scores.norms * scores.reach + TINY[dtype]
    distance = (2 * keys).sqrt() if metric == "cosine" else keys.sqrt() * scores.scale
    farthest = scores.norms + distance
    return 0.5 * distance.square() + error * (scores.norms.square() + farthest.square()) + TINY[dtype]


def _candidates(scores: Scores, own: Tensor, wanted: int, precision: str) -> tuple[Tensor, Tensor]:
    """At least ``wanted`` points of least score for each query, where there are so many: scores and indices."""
    options = {"METRIC": 0, "EXACT": False, "PRECISION": "tf32" if precision == "bf16" else precision}
    return _launches(scores.queries, scores.points, scores.offsets, own, wanted, options, precision == "bf16")


def _exact_candidates(rows: Tensor, points: Tensor, own: Tensor, wanted: int, metric: str) -> tuple[Tensor, Tensor]:
    options = {"METRIC": METRICS.index(metric), "EXACT": True, "PRECISION": "ieee"}
    return _launches(rows, points, points, own, wanted, options, False)


def _launches(
    rows: Tensor, points: Tensor, offsets: Tensor, own: Tensor, wanted: int, options: dict, in_bf16: bool
) -> tuple[Tensor, Tensor]:
    """As many launches as ``wanted`` takes, each beyond the last point of the one before."""
    (m, d), n = rows.shape, len(points)
    dtype = torch.float64 if options["EXACT"] else rows.dtype
    places = min(MOST_PLACES[dtype.itemsize], max(16, triton.next_power_of_2(wanted)))
    choice = launch(dtype.itemsize, options["PRECISION"])
    n_blocks = triton.cdiv(m, choice.block_m)
    n_parts, points_a_part = other_splits(n_blocks, n, LEAST_POINTS * places, choice.block_n, chip_of(rows))
    scores, indices = [], []
    floor, floor_index = torch.empty(1, dtype=dtype, device=rows.device), own
    for number in range(triton.cdiv(wanted, places)):
        found = torch.empty((m, n_parts * places), dtype=dtype, device=rows.device)
        which = torch.empty((m, n_parts * places), dtype=torch.int64, device=rows.device)
        with torch.cuda.device_of(rows):
            tiles._candidates_kernel[(n_blocks, n_parts)](
                rows,
                points,
                offsets,
                own,
                floor,
                floor_index,
                found,
                which,
                points_a_part,
                m,
                n,
                d,
                **options,
                HAS_FLOOR=number > 0,
                IN_BF16=in_bf16,
                BLOCK_M=choice.block_m,
                BLOCK_N=choice.block_n,
                BLOCK_D=choice.block_d,
                PLACES=places,
                num_warps=choice.num_warps,
                num_stages=1,
                **ALL_REGISTERS,
            )
        if n_parts > 1:
            found, which = _least(found, which, places)
        scores.append(found)
        indices.append(which)
        floor = scores[-1].amax(dim=1)
        floor_index = torch.where(scores[-1] == floor[:, None], indices[-1], -1).amax(dim=1)
    return torch.cat(scores, dim=1), torch.cat(indices, dim=1)


def _least(scores: Tensor, indices: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Of each row the least scores, of equal ones those of the lowest indices."""
    indices, order = indices.sort(dim=1)
    scores, last = scores.gather(1, order).sort(dim=1, stable=True)
    return scores[:, :places], indices.gather(1, last[:, :places])


def _within(
    scores: Scores, own: Tensor, bounds: Tensor, counts: Tensor, indices: Tensor | None, precision: str
) -> None:
    """Without ``indices`` count into ``counts``; with them fill in, each row from where ``counts`` says."""
    (m, d), n = scores.queries.shape, len(scores.points)
    choice = launch_within(scores.points.dtype.itemsize)
    with torch.cuda.device_of(bounds):
        tiles._within_kernel[(triton.cdiv(m, choice.block_m),)](
            scores.queries,
            scores.points,
            scores.offsets,
            own,
            bounds,
            counts,
            counts,
            counts if indices is None else indices,
            m,
            n,
            d,
            FILL=indices is not None,
            PRECISION=precision,
            IN_BF16=False,
            BLOCK_M=choice.block_m,
            BLOCK_N=choice.block_n,
            BLOCK_D=choice.block_d,
            num_warps=choice.num_warps,
            num_stages=1,
            **ALL_REGISTERS,
        )
