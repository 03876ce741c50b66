"""Compiled auction of places in clusters: rows bid for centers of bounded capacity, 64 rows at a time.

A center holds at most ``capacities[j]`` rows, each with its bid, in a skew heap by bid; once it is full its price
is the lowest bid that it holds, and a row that bids more takes that row's place. A row bids for the center with the
least squared distance plus price, and goes as high as leaves it no worse off than with the next best, plus
``epsilon``. When every row has a place, each pays at most ``epsilon`` more than the least that it could.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels import _tile
from fastdc.kernels._numba import jit
from fastdc.kernels._tile import load_rows, sq_distance_tile
from fastdc.kernels._vectors import LANES

NONE = -1  # no row, no label


class Auction(NamedTuple):
    """Who holds what. Heaps are trees of rows: ``left`` and ``right`` are children, ``roots`` the lowest bids."""

    capacities: NDArray  # (n_clusters,) int64, above zero
    prices: NDArray  # (n_clusters,) float64
    counts: NDArray  # (n_clusters,) int64: places taken
    nobodies: NDArray  # (n_clusters,) int64: those taken by nobody
    levels: NDArray  # (n_clusters,) float64: what each nobody there bid
    waiting: NDArray  # (1,) int64: nobodies without a place
    roots: NDArray  # (n_clusters,) int64
    labels: NDArray  # (n,) int64
    bids: NDArray  # (n,) float64
    left: NDArray  # (n,) int64
    right: NDArray  # (n,) int64
    queue: NDArray  # (n,) int64: rows without a place, a ring
    ends: NDArray  # (2,) int64: where the queue begins, and how many rows it holds


class Scratch(NamedTuple):
    rows: NDArray  # (64, n_features)
    tile: NDArray  # (n_clusters, 64) squared distances
    product: _tile.Scratch
    best: NDArray  # (64,) float64 least squared distance plus price
    second: NDArray  # (64,) float64
    nearest: NDArray  # (64,) int64


def make_auction(n: int, capacities: NDArray) -> Auction:
    k = len(capacities)
    return Auction(
        capacities=capacities,
        prices=np.zeros(k),
        counts=np.zeros(k, np.int64),
        nobodies=np.zeros(k, np.int64),
        levels=np.zeros(k),
        waiting=np.array([capacities.sum() - n]),
        roots=np.full(k, NONE),
        labels=np.full(n, NONE),
        bids=np.zeros(n),
        left=np.full(n, NONE),
        right=np.full(n, NONE),
        queue=np.arange(n),
        ends=np.array([0, n]),
    )


def make_scratch(n_clusters: int, n_features: int, dtype: np.dtype) -> Scratch:
    return Scratch(
        rows=np.empty((LANES, n_features), dtype),
        tile=np.empty((n_clusters, LANES), dtype),
        product=_tile.make_scratch(n_clusters, n_features, dtype),
        best=np.empty(LANES),
        second=np.empty(LANES),
        nearest=np.empty(LANES, np.int64),
    )


def clear(auction: Auction) -> None:
    """Everybody without a place again; prices stay."""
    n = len(auction.labels)
    auction.counts[:] = 0
    auction.nobodies[:] = 0
    auction.waiting[:] = auction.capacities.sum() - n
    for array in (auction.roots, auction.labels, auction.left, auction.right):
        array[:] = NONE
    auction.queue[:] = np.arange(n)
    auction.ends[:] = 0, n


@jit(inner=True)
def _find_best(rows, centers, prices, scratch):
    """Of each row the least squared distance plus price, whose center that is, and the second least."""
    load_rows(rows, centers, scratch.product)
    sq_distance_tile(rows, centers, scratch.product, scratch.tile)
    best, second, nearest = scratch.best, scratch.second, scratch.nearest
    for lane in range(LANES):
        best[lane] = np.inf
        second[lane] = np.inf
        nearest[lane] = 0
    for j in range(prices.size):
        row, price = scratch.tile[j], prices[j]
        for lane in range(LANES):
            value = np.float64(row[lane]) + price
            closer = value < best[lane]
            loser = best[lane] if closer else value
            second[lane] = loser if loser < second[lane] else second[lane]
            nearest[lane] = j if closer else nearest[lane]
            best[lane] = value if closer else best[lane]


@jit
def bid(x, centers, scratch, auction, epsilon, n_tiles):
    """Nobodies bid, and rows from the queue's front, 64 at a time, at most ``n_tiles`` times; how many are left."""
    queue, ends, n = auction.queue, auction.ends, x.shape[0]
    for _ in range(n_tiles):
        while auction.waiting[0] > 0:
            _place_nobodies(auction, epsilon)
        m = min(LANES, ends[1])
        if m == 0:
            break
        first = ends[0]
        rows = scratch.rows[:m]
        for lane in range(m):
            rows[lane] = x[queue[(first + lane) % n]]
        ends[0] = (first + m) % n
        ends[1] -= m
        _find_best(rows, centers, auction.prices, scratch)
        for lane in range(m):
            j = scratch.nearest[lane]
            gain = min(scratch.second[lane], 1e300) - scratch.best[lane]
            _offer(auction, queue[(first + lane) % n], j, auction.prices[j] + gain + epsilon)
    return ends[1] + auction.waiting[0]


@jit(inner=True)
def _enqueue(auction, i):
    queue, ends = auction.queue, auction.ends
    queue[(ends[0] + ends[1]) % queue.size] = i
    ends[1] += 1


@jit(inner=True)
def _offer(auction, i, j, offer):
    """Row i offers something for a place in cluster j; who goes without one waits again."""
    if auction.counts[j] < auction.capacities[j]:
        auction.counts[j] += 1
    elif not offer > auction.prices[j]:
        _enqueue(auction, i)
        return
    elif auction.nobodies[j] > 0 and auction.levels[j] == auction.prices[j]:
        auction.nobodies[j] -= 1
        auction.waiting[0] += 1
    else:
        _evict(auction, j)
    auction.bids[i] = offer
    auction.labels[i] = j
    auction.roots[j] = _merge(auction, auction.roots[j], i)
    _set_price(auction, j)


@jit(inner=True)
def _evict(auction, j):
    """The row with the lowest bid for cluster j leaves it."""
    i = auction.roots[j]
    auction.roots[j] = _merge(auction, auction.left[i], auction.right[i])
    auction.labels[i] = NONE
    auction.left[i] = NONE
    auction.right[i] = NONE
    _enqueue(auction, i)


@jit(inner=True)
def _set_price(auction, j):
    """The lowest bid for a cluster without free places."""
    if auction.counts[j] == auction.capacities[j]:
        root = auction.roots[j]
        price = np.inf if root == NONE else auction.bids[root]
        auction.prices[j] = min(price, auction.levels[j]) if auction.nobodies[j] > 0 else price


@jit(inner=True)
def _place_nobodies(auction, epsilon):
    """All nobodies that wait bid for the cluster of the least price, and those already there bid as much."""
    cheapest, least, second = 0, np.inf, np.inf
    for j in range(auction.prices.size):
        price = auction.prices[j]
        if price < least:
            cheapest, least, second = j, price, least
        elif price < second:
            second = price
    j, level = cheapest, min(second, 1e300) + epsilon
    auction.levels[j] = level
    free = min(auction.waiting[0], auction.capacities[j] - auction.counts[j])
    auction.counts[j] += free
    auction.nobodies[j] += free
    auction.waiting[0] -= free
    while auction.waiting[0] > 0 and auction.roots[j] != NONE and auction.bids[auction.roots[j]] < level:
        _evict(auction, j)
        auction.nobodies[j] += 1
        auction.waiting[0] -= 1
    _set_price(auction, j)


@jit(inner=True)
def _merge(auction, a, b):
    """One skew heap from two; its root."""
    bids, left, right = auction.bids, auction.left, auction.right
    if a == NONE:
        return b
    if b == NONE:
        return a
    if bids[b] < bids[a]:
        a, b = b, a
    root = a
    while True:
        below = right[a]
        right[a] = left[a]
        if below == NONE:
            left[a] = b
            return root
        if bids[b] < bids[below]:
            below, b = b, below
        left[a] = below
        a = below


@jit
def least_block(x, centers, scratch, prices):
    """Sum over rows x (m, d) of the least squared distance plus price."""
    total = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        _find_best(part, centers, prices, scratch)
        for lane in range(part.shape[0]):
            total += scratch.best[lane]
    return total


@jit
def cost_block(x, raw, labels):
    """Sum over rows x (m, d) of the squared distance to their center, by differences."""
    total = 0.0
    for i in range(x.shape[0]):
        total += _sq_distance(x[i], raw[labels[i]])
    return total


@jit(reassociate=True, inner=True)
def _sq_distance(row, center):
    total = 0.0
    for d in range(row.size):
        difference = np.float64(row[d]) - np.float64(center[d])
        total += difference * difference
    return total
