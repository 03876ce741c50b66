"""Compiled passes over all pairs for clusterings: silhouettes, hardest pairs, distances to centers, dispersion."""

from __future__ import annotations

import numpy as np

from fastdc.kernels._numba import jit
from fastdc.kernels._tile import Centers, load_rows, sq_distance_tile
from fastdc.kernels._vectors import LANES
from fastdc.kernels.pairwise.numba_chunks import CHUNK, chunk_of, name_lanes


@jit
def silhouette_block(points, labels, offsets, means, shifted, norms, work, start, stop, out):
    """Silhouettes of rows start … stop of ``points``, which are sorted by label: cluster c begins at offsets[c].

    Each cluster is shifted by its own mean (k, padded), so that distances within it and to it lose no digits.
    shifted (CHUNK, d) and norms (CHUNK,) are scratch.
    """
    sums, own, other = work.sums[0], work.sums[1], work.sums[2]
    for first in range(start, stop, LANES):
        rows = points[first:stop]
        used = min(LANES, stop - first)
        other[:] = np.inf
        for c in range(offsets.size - 1):
            count = offsets[c + 1] - offsets[c]
            if count == 0:
                continue
            load_rows(rows, Centers(points, means[c], shifted, shifted, norms), work.scratch)
            sums[:] = 0.0
            for at in range(offsets[c], offsets[c + 1], CHUNK):
                size = min(CHUNK, offsets[c + 1] - at)
                part = points[at : at + size]
                _shift_chunk(part, means[c], shifted, norms, work.scratch.product)
                centers = Centers(part, means[c], shifted[:size], shifted[:size], norms[:size])
                tile = work.tile[:size]
                sq_distance_tile(rows, centers, work.scratch, tile)
                _add_roots(tile, work.lanes[0], sums)
            for lane in range(used):
                if labels[first + lane] == c:
                    own[lane] = sums[lane] / (count - 1) if count > 1 else -1.0
                else:
                    mean = sums[lane] / count
                    if mean < other[lane] or mean != mean:  # NaN stays
                        other[lane] = mean
        for lane in range(used):
            a, b = own[lane], other[lane]
            if a == -1.0 or (a == 0.0 and b == 0.0):  # alone in its cluster, or all points coincide
                out[first + lane] = 0.0
            else:
                out[first + lane] = (b - a) / max(a, b)


@jit(inner=True)
def _shift_chunk(part, mean, shifted, norms, product):
    if product is None:
        return
    for i in range(part.shape[0]):
        for d in range(part.shape[1]):
            shifted[i, d] = part[i, d] - mean[d]
    for i in range(part.shape[0]):
        norms[i] = _sq_norm(shifted[i])


@jit(inner=True, reassociate=True)
def _sq_norm(row):
    total = row.dtype.type(0)
    for d in range(row.size):
        total += row[d] * row[d]
    return total


@jit(inner=True)
def _add_roots(tile, partial, sums):
    partial[:] = tile.dtype.type(0)
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            partial[lane] += np.sqrt(row[lane])
    for lane in range(LANES):
        sums[lane] += partial[lane]


@jit
def hardest_block(points, labels, work, start, stop, positive, negative, farthest, nearest):
    """Of rows start … stop: the farthest point of the same label and the nearest of another, -1 where none is."""
    far, near = work.lanes[0], work.lanes[1]
    far_index, near_index = np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    n = labels.size
    for first in range(start, stop, LANES):
        rows = points.raw[first:stop]
        name_lanes(labels, first, stop, work)
        far[:] = -1
        near[:] = np.inf
        far_index[:] = -1
        near_index[:] = -1
        for at in range(0, n, CHUNK):
            size = min(CHUNK, n - at)
            centers = chunk_of(points, at, size)
            if at == 0:
                load_rows(rows, centers, work.scratch)
            tile = work.tile[:size]
            sq_distance_tile(rows, centers, work.scratch, tile)
            for j in range(size):
                _compare(tile[j], np.int32(at + j), np.int32(labels[at + j]), work, far, near, far_index, near_index)
        for lane in range(min(LANES, stop - first)):
            i = first + lane
            positive[i], negative[i] = far_index[lane], near_index[lane]
            farthest[i] = np.sqrt(far[lane]) if far_index[lane] >= 0 else 0.0
            nearest[i] = np.sqrt(near[lane])


@jit(inner=True)
def _compare(row, point, label, work, far, near, far_index, near_index):
    for lane in range(LANES):
        same = work.label[lane] == label
        unknown = row[lane] != row[lane]  # farther and nearer than any number
        farther = same & (work.which[lane] != point) & ((row[lane] > far[lane]) | (unknown & (far[lane] == far[lane])))
        nearer = (not same) & (
            (row[lane] < near[lane]) | (near_index[lane] < 0) | (unknown & (near[lane] == near[lane]))
        )
        far[lane] = row[lane] if farther else far[lane]
        far_index[lane] = point if farther else far_index[lane]
        near[lane] = row[lane] if nearer else near[lane]
        near_index[lane] = point if nearer else near_index[lane]


@jit
def center_distances_block(x, labels, centers, scratch, tile, lowest, own, other):
    """Distances of rows x to their own center and to the nearest other one; tile (k, 64), lowest (64,)."""
    for first in range(0, x.shape[0], LANES):
        rows = x[first:]
        load_rows(rows, centers, scratch)
        sq_distance_tile(rows, centers, scratch, tile)
        used = min(LANES, rows.shape[0])
        for lane in range(used):
            j = labels[first + lane]
            own[first + lane] = np.sqrt(tile[j, lane])
            tile[j, lane] = np.inf
        lowest[:] = np.inf
        for j in range(tile.shape[0]):
            for lane in range(LANES):
                value = tile[j, lane]
                lowest[lane] = value if (value < lowest[lane]) | (value != value) else lowest[lane]
        for lane in range(used):
            other[first + lane] = np.sqrt(lowest[lane])


@jit
def sums_block(x, labels, sums, counts):
    """sums (k, d) float64 and counts (k,) of the rows of each label, from zero."""
    sums[:] = 0.0
    counts[:] = 0
    for i in range(x.shape[0]):
        c = labels[i]
        counts[c] += 1
        for d in range(x.shape[1]):
            sums[c, d] += x[i, d]


@jit
def spread_block(x, labels, centers, spread):
    """spread (k, 2): sums of the distances to the own center (k, d) float64, and of their squares, from zero."""
    spread[:] = 0.0
    for i in range(x.shape[0]):
        c = labels[i]
        square = _sq_distance(x[i], centers[c])
        spread[c, 0] += np.sqrt(square)
        spread[c, 1] += square


@jit(inner=True, reassociate=True)
def _sq_distance(row, center):
    total = 0.0
    for d in range(row.size):
        difference = row[d] - center[d]
        total += difference * difference
    return total
