"""Rows of points into vector lanes and back: 64 rows (64, n_features) stand as columns (n_features, 64)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import LANES, VECTOR_BYTES, WIDEST, Vectors, index, intrinsic


def padded(n_features: int) -> int:
    """n_features rounded up to whole vectors."""
    return -(-n_features // WIDEST) * WIDEST


def make_corner(dtype: np.dtype) -> NDArray[Any]:
    """Scratch of :func:`load_columns` and :func:`store_columns`."""
    return np.zeros((WIDEST, WIDEST), dtype)


@jit(inner=True)
def load_columns(x, shift, columns, corner):
    """The first 64 of rows x (m, n_features) less the shift; free lanes repeat the last row.

    ``shift`` is (padded,), ``columns`` (padded, 64), whose rows beyond n_features mean nothing.
    """
    m, n_features = x.shape
    size = VECTOR_BYTES // x.itemsize
    for lane in range(0, LANES, size):
        for d in range(0, n_features, size):
            if lane + size <= m and (lane + size - 1) * n_features + d + size <= x.size:
                transpose(x, lane * n_features + d, n_features, shift, d, columns, d * LANES + lane, LANES)
                continue
            width = min(size, n_features - d)
            for i in range(size):
                row = x[min(lane + i, m - 1)]
                for e in range(width):
                    corner[i, e] = row[d + e]
            transpose(corner, 0, WIDEST, shift, d, columns, d * LANES + lane, LANES)


@jit(inner=True)
def store_columns(columns, m, out, corner):
    """The first m columns of ``columns`` (padded, 64) as the first m rows of ``out`` (>= m, n_features).

    Rows of ``out`` beyond m are scratch too: they may be overwritten.
    """
    n_features = out.shape[1]
    size = VECTOR_BYTES // out.itemsize
    zeros = np.zeros(WIDEST, out.dtype)
    last = (n_features - 1) // size * size
    for lane in range(0, m, size):
        for d in range(last, -1, -size):  # the ragged last vector first: it overruns into the next row's start
            if (lane + size - 1) * n_features + d + size <= out.size:
                transpose(columns, d * LANES + lane, LANES, zeros, 0, out, lane * n_features + d, n_features)
                continue
            transpose(columns, d * LANES + lane, LANES, zeros, 0, corner, 0, WIDEST)
            for i in range(min(size, m - lane)):
                for e in range(min(size, n_features - d)):
                    out[lane + i, d + e] = corner[i, e]


@intrinsic
def transpose(typingctx, x, x_start, x_stride, shift, shift_start, out, out_start, out_stride):
    """out[d, lane] = x[lane, d] - shift[d] for one square of vector size, from where the starts say.

    Rows of ``out`` are written in order, each a whole vector.
    """
    signature = types.void(x, types.intp, types.intp, shift, types.intp, out, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        x, x_start, x_stride, shift, shift_start, out, out_start, out_stride = args
        v = Vectors(context, builder, sig.args[0].dtype)
        first = v.data(sig.args[0], x, x_start)
        offset = v.load(v.data(sig.args[3], shift, shift_start))
        rows = [builder.fsub(v.load(v.at(first, builder.mul(index(i), x_stride))), offset) for i in range(v.size)]
        _store_transposed(v, rows, v.data(sig.args[5], out, out_start), out_stride)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def transpose_rows(typingctx, x, rows, first_row, shift, d, out, out_start, out_stride):
    """out[e, i] = x[rows[first_row + i], d + e] - shift[d + e] for one square of vector size.

    Beyond the features of x it stores numbers without meaning.
    """
    signature = types.void(x, rows, types.intp, shift, types.intp, out, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        x, rows, first_row, shift, d, out, out_start, out_stride = args
        v = Vectors(context, builder, sig.args[0].dtype)
        n_features = builder.extract_value(context.make_array(sig.args[0])(context, builder, x).shape, 1)
        inside = v.below(builder.sub(n_features, d))
        offset = v.load(v.data(sig.args[3], shift, d))
        numbers = v.data(sig.args[1], rows, first_row)
        starts = [builder.add(builder.mul(builder.load(v.at(numbers, index(i))), n_features), d) for i in range(v.size)]
        loaded = [builder.fsub(v.load_some(v.data(sig.args[0], x, start), inside), offset) for start in starts]
        _store_transposed(v, loaded, v.data(sig.args[5], out, out_start), out_stride)
        return context.get_dummy_value()

    return signature, codegen


def _store_transposed(v: Vectors, rows: list[Any], target: Any, stride: Any) -> None:
    """Emit the transposition of a square of vectors and the stores of its rows, ``stride`` numbers apart."""
    step = 1
    while step < v.size:  # swap the off-diagonal blocks of size step
        lower = [p + v.size - step if p & step else p for p in range(v.size)]
        upper = [p + v.size if p & step else p + step for p in range(v.size)]
        for i in range(v.size):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = v.shuffle(a, b, lower), v.shuffle(a, b, upper)
        step *= 2
    for i, row in enumerate(rows):
        v.store(row, v.at(target, v.builder.mul(index(i), stride)))
