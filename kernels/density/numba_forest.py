"""Sets of rows that several threads join at once, without locks.

A forest of parents: row i is in the set of its root, the row that is its own parent. Joining hangs the higher root
below the lower one by compare-and-swap, so that in the end a set's root is its lowest row, whatever threads came
first. Shortening a path is a plain store: it only ever puts one ancestor in the place of another.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import intrinsic


@intrinsic
def _compare_and_swap(typingctx, array, i, expected, new):
    """Whether array[i] was ``expected``; it is then ``new``. int64, one step for all threads."""

    def codegen(context, builder, signature, args):
        array, i, expected, new = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        result = builder.cmpxchg(builder.gep(data, [i]), expected, new, "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(result, 1), ir.IntType(8))

    return types.uint8(array, types.intp, types.int64, types.int64), codegen


@jit(inner=True)
def find(parents, i):
    """The root of row i."""
    while True:
        parent = parents[i]
        if parent == i:
            return i
        grandparent = parents[parent]
        if grandparent != parent:
            parents[i] = grandparent
        i = parent


@jit(inner=True)
def join(parents, i, j):
    """The sets of rows i and j become one."""
    while True:
        i, j = find(parents, i), find(parents, j)
        if i == j:
            return
        if i > j:
            i, j = j, i
        if _compare_and_swap(parents, j, j, i) != 0:
            return


@jit
def join_pairs(parents, rows, others):
    """Joins row and other of each pair."""
    for pair in range(rows.size):
        join(parents, rows[pair], others[pair])


@jit
def number_sets(parents, is_member, places, numbers):
    """Sets of members numbered in the order of ``places`` (n,), the row at each place; -1 for other rows."""
    numbers[:] = -1
    count = 0
    for place in range(places.size):
        i = places[place]
        if is_member[i]:
            root = find(parents, i)
            if numbers[root] < 0:
                numbers[root] = count
                count += 1
    for i in range(numbers.size):  # a root is the lowest row of its set, so that it is numbered before the others
        numbers[i] = numbers[find(parents, i)] if is_member[i] else -1
    return count
