"""The best one-to-one matching of rows and columns. SciPy solves what is not decided at once."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

CELLS_SOLVED_DENSE = 1 << 24


def best_cells(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Indices of the cells (rows, columns, counts) of a one-to-one matching with the largest sum, ascending.

    Cells must be distinct, with counts above zero; the matching need not be full.
    """
    left = np.arange(len(counts))
    chosen = []
    while len(left):
        certain = left[_certain(rows[left], columns[left], counts[left], shape)]
        if len(certain) == 0:
            chosen.append(left[_solved(rows[left], columns[left], counts[left])])
            break
        chosen.append(certain)
        free_row, free_column = np.ones(shape[0], dtype=bool), np.ones(shape[1], dtype=bool)
        free_row[rows[certain]] = False
        free_column[columns[certain]] = False
        left = left[free_row[rows[left]] & free_column[columns[left]]]
    return np.sort(np.concatenate(chosen)) if chosen else left


def _certain(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cells that some best matching holds, at most one a row and a column.

    A cell that counts at least as much as the largest other cell of its row and the largest other cell of
    its column together is one: a matching without it holds at most these two instead, and gains by exchange.
    """
    rivals = _largest_other(rows, counts, shape[0]) + _largest_other(columns, counts, shape[1])
    found = np.flatnonzero(counts >= rivals)
    found = found[np.unique(rows[found], return_index=True)[1]]
    return found[np.unique(columns[found], return_index=True)[1]]


def _largest_other(positions: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """For each cell the largest count among the other cells at its position, 0 where it is alone."""
    largest, second = np.zeros((2, size), dtype=counts.dtype)
    np.maximum.at(largest, positions, counts)
    at_top = counts == largest[positions]
    np.maximum.at(second, positions[~at_top], counts[~at_top])
    alone_at_top = at_top & (np.bincount(positions[at_top], minlength=size) == 1)[positions]
    return np.where(alone_at_top, second[positions], largest[positions])


def _solved(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Indices of a best matching by SciPy, dense or sparse."""
    row_ids, rows = np.unique(rows, return_inverse=True)
    column_ids, columns = np.unique(columns, return_inverse=True)
    shape = (len(row_ids), len(column_ids))
    if shape[0] * shape[1] <= max(CELLS_SOLVED_DENSE, 4 * len(counts)):
        dense = np.zeros(shape)
        dense[rows, columns] = counts
        matched = linear_sum_assignment(dense, maximize=True)
    else:
        matched = _sparse_matching(rows, columns, counts, shape)
    partner = np.full(shape[0], -1)
    partner[matched[0]] = matched[1]
    return np.flatnonzero(partner[rows] == columns)


def _sparse_matching(
    rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of a best matching of a sparse table.

    Each row of the shorter side gets a column of its own that stands for "unmatched", so that a full matching
    exists; one is added to every weight, since the solver takes explicit zeros for missing edges.
    """
    if shape[0] > shape[1]:
        matched_columns, matched_rows = _sparse_matching(columns, rows, counts, shape[::-1])
        return matched_rows, matched_columns
    unmatched = np.arange(shape[0])
    weights = np.concatenate([counts + 1.0, np.ones(shape[0])])
    edges = (np.concatenate([rows, unmatched]), np.concatenate([columns, shape[1] + unmatched]))
    graph = csr_array((weights, edges), shape=(shape[0], shape[1] + shape[0]))
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph, maximize=True)
    real = matched_columns < shape[1]
    return matched_rows[real], matched_columns[real]
