"""Small matrix products beneath the CPU kernels.

LLVM vectorises plain loops well but never keeps a block of accumulators in registers across a reduction.
``gemm`` therefore emits that one inner loop itself: ``ROWS x VECTORS`` accumulators stay in registers while
the reduction runs. It is as fast as a tuned BLAS on the tiles used here, it is serial (so it may run on any
thread, beside torch's own pool), and its bits depend neither on the number of threads nor on the tile that an
element falls into. It is compiled once and called by name: inlined, it would be compiled again in every kernel.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from fastdc.kernels._numba import export
from fastdc.kernels._vectors import ROWS, VECTOR_BYTES, VECTORS, Vectors, index, intrinsic, loop

INNER = 256  # terms of the reduction between two visits to the output: its operands stay in cache


PRODUCT, SQ_DIFFERENCE, WEIGHTED_DIFFERENCE = range(3)  # a b; (b - a)^2; b (o - a), o being out on entry


def _make_tile(rows: int, vectors: int, term: int = PRODUCT) -> Any:
    @intrinsic
    def tile(typingctx, a, lda, b, ldb, out, ldo, inner, accumulate):
        """out[:rows, :vectors] (+)= sum of terms of a[:rows, :inner] and b[:inner, :vectors], from pointers."""
        signature = types.void(a, types.intp, b, types.intp, out, types.intp, types.intp, types.boolean)

        def codegen(context, builder, sig, args):
            a, lda, b, ldb, out, ldo, inner, accumulate = args
            v = Vectors(context, builder, sig.args[4].dtype)
            a_rows = [v.at(a, builder.mul(index(i), lda)) for i in range(rows)]
            places = [(i, j) for i in range(rows) for j in range(vectors)]
            out_tile = [v.at(out, builder.add(builder.mul(index(i), ldo), index(j * v.size))) for i, j in places]
            entered = [v.load(pointer) for pointer in out_tile] if term == WEIGHTED_DIFFERENCE else []

            def body(k, sums):  # sums[i, j] += a[i, k] * b[k, j], all sums in registers
                b_row = v.at(b, builder.mul(k, ldb))
                b_vectors = [v.load(v.at(b_row, index(j * v.size))) for j in range(vectors)]
                factors = [v.broadcast(builder.load(v.at(row, k), typ=v.scalar)) for row in a_rows]
                updated = []
                for place, ((i, j), partial) in enumerate(zip(places, sums)):
                    left, right = factors[i], b_vectors[j]
                    if term == SQ_DIFFERENCE:
                        left = right = builder.fsub(right, left)
                    elif term == WEIGHTED_DIFFERENCE:
                        left = builder.fsub(entered[place], left)
                    updated.append(v.fma(left, right, partial))
                return updated

            sums = loop(builder, inner, [v.zeros()] * len(places), body)
            with builder.if_else(accumulate) as (add, put):
                with add:
                    for pointer, value in zip(out_tile, sums):
                        v.store(builder.fadd(v.load(pointer), value), pointer)
                with put:
                    for pointer, value in zip(out_tile, sums):
                        v.store(value, pointer)
            return context.get_dummy_value()

        return signature, codegen

    return tile


_tile = _make_tile(ROWS, VECTORS)
_tile_one_row = _make_tile(1, VECTORS)
_tile_one_vector = _make_tile(ROWS, 1)
_tile_least = _make_tile(1, 1)
_sq_dists_tile = _make_tile(ROWS, VECTORS, SQ_DIFFERENCE)
_sq_dists_one_row = _make_tile(1, VECTORS, SQ_DIFFERENCE)
_weigh_tile = _make_tile(ROWS // 2, VECTORS, WEIGHTED_DIFFERENCE)
_weigh_one_row = _make_tile(1, VECTORS, WEIGHTED_DIFFERENCE)


@intrinsic
def _at(typingctx, pointer, offset):
    """pointer + offset, in elements."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen


def _product(a, b, out, m, inner, n, lanes, accumulate):
    """out (+)= a @ b for row-major a (m, inner), b (inner, n), out (m, n)."""
    for first in range(0, inner, INNER):
        terms = min(INNER, inner - first)
        add = accumulate or first > 0
        column = 0
        while column < n:
            wide = column + VECTORS * lanes <= n
            row = 0
            while row < m:
                a_at = _at(a, row * inner + first)
                b_at = _at(b, first * n + column)
                out_at = _at(out, row * n + column)
                if row + ROWS <= m:
                    if wide:
                        _tile(a_at, inner, b_at, n, out_at, n, terms, add)
                    else:
                        _tile_one_vector(a_at, inner, b_at, n, out_at, n, terms, add)
                    row += ROWS
                else:
                    if wide:
                        _tile_one_row(a_at, inner, b_at, n, out_at, n, terms, add)
                    else:
                        _tile_least(a_at, inner, b_at, n, out_at, n, terms, add)
                    row += 1
            column += VECTORS * lanes if wide else lanes


def _sq_dists(a, b, out, m, inner, n, lanes, accumulate):
    """out[i, l] = sum over k of (a[i, k] - b[k, l])^2; n a multiple of VECTORS * lanes."""
    for column in range(0, n, VECTORS * lanes):
        row = 0
        while row < m:
            a_at, b_at, out_at = _at(a, row * inner), _at(b, column), _at(out, row * n + column)
            if row + ROWS <= m:
                _sq_dists_tile(a_at, inner, b_at, n, out_at, n, inner, accumulate)
                row += ROWS
            else:
                _sq_dists_one_row(a_at, inner, b_at, n, out_at, n, inner, accumulate)
                row += 1


def _weigh_differences(a, b, out, m, inner, n, lanes, accumulate):
    """out[i, l] = sum over k of b[k, l] (out[i, l] - a[i, k]); n a multiple of VECTORS * lanes."""
    for column in range(0, n, VECTORS * lanes):
        row = 0
        while row < m:
            a_at, b_at, out_at = _at(a, row * inner), _at(b, column), _at(out, row * n + column)
            if row + ROWS // 2 <= m:
                _weigh_tile(a_at, inner, b_at, n, out_at, n, inner, accumulate)
                row += ROWS // 2
            else:
                _weigh_one_row(a_at, inner, b_at, n, out_at, n, inner, accumulate)
                row += 1


_EXPORTED: dict[str, Any] = {}  # name: function
_ready: set[tuple[str, str]] = set()


def prepare(dtype: np.dtype) -> None:
    """Build or load the products of a dtype: before any kernel that calls them is itself built or loaded."""
    element = numba.from_dtype(dtype)
    for name, function in _EXPORTED.items():
        if (name, element.name) not in _ready:
            pointer = types.CPointer(element)
            signature = types.void(pointer, pointer, pointer, *[types.intp] * 4, types.boolean)
            export(_symbol(name, element), signature, function)
            _ready.add((name, element.name))


def _symbol(name: str, element: Any) -> str:
    return f"fastdc_{name}_{element.name}"


def _export_for_arrays(name: str, function: Any) -> Any:
    """What kernels call the function by: f(a, b, out, accumulate) on arrays, for float32 and float64."""
    _EXPORTED[name] = function

    @intrinsic
    def call(typingctx, a, b, out, accumulate):
        if not (a.dtype == b.dtype == out.dtype and out.dtype in (types.float32, types.float64)):
            raise TypingError(f"{name} needs three arrays of one dtype, float32 or float64, got {a}, {b}, {out}")

        def codegen(context, builder, signature, args):
            arrays = [context.make_array(t)(context, builder, v) for t, v in zip(signature.args[:3], args)]
            (m, inner), (_, n) = (cgutils.unpack_tuple(builder, array.shape) for array in arrays[:2])
            element = signature.args[2].dtype
            lanes = ir.Constant(m.type, VECTOR_BYTES // (element.bitwidth // 8))
            pointers = [array.data for array in arrays]
            arguments = [*pointers, m, inner, n, lanes, builder.zext(args[3], ir.IntType(8))]
            function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
            function = cgutils.get_or_insert_function(builder.module, function_type, _symbol(name, element))
            builder.call(function, arguments)
            return context.get_dummy_value()

        return types.void(a, b, out, types.boolean), codegen

    return call


gemm = _export_for_arrays("gemm", _product)
"""gemm(a, b, out, accumulate) inside kernels: out (+)= a @ b.

Row-major a (m, inner), b (inner, n), out (m, n) of one dtype, float32 or float64; n a multiple of 16, inner at
least 1. Each element of out is one chain of fused multiply-adds in the order of the reduction (restarted every
``INNER`` terms), whatever tile it falls into.
"""

sq_dists = _export_for_arrays("sq_dists", _sq_dists)
"""sq_dists(a, b, out, False) inside kernels: out[i, l] = |a[i] - b[:, l]|^2 by differences; n a multiple of 64."""

weigh_differences = _export_for_arrays("weigh_differences", _weigh_differences)
"""weigh_differences(a, b, out, False) inside kernels: out[i, l] becomes sum_k b[k, l] (out[i, l] - a[i, k]).

n a multiple of 64. A weighted sum of differences that never multiplies out.
"""
