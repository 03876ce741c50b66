"""The vector arithmetic beneath the CPU kernels: a small matrix product, log2 and power.

LLVM vectorises plain loops well but never keeps a block of accumulators in registers across a reduction.
``gemm`` therefore emits that one inner loop itself: ``ROWS x VECTORS`` accumulators stay in registers while
the reduction runs. It is as fast as a tuned BLAS on the tiles used here, it is serial (so it may run on any
thread, beside torch's own pool), and its bits depend neither on the number of threads nor on the tile that an
element falls into. It is compiled once and called by name: inlined, it would be compiled again in every kernel.
"""

from __future__ import annotations

import math
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from fastdc.kernels._numba import export, jit

LANES = 64  # rows that a kernel treats at once, one a vector lane: a multiple of every vector width


def _register_file() -> tuple[int, int, int]:
    """(bytes of a vector, rows of a tile, vectors of a tile) that fit this processor's registers."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 6, 4
    if features.get("avx"):
        return 32, 6, 2
    if features.get("neon"):
        return 16, 6, 4
    return 16, 6, 2


VECTOR_BYTES, ROWS, VECTORS = _register_file()
INNER = 256  # terms of the reduction between two visits to the output: its operands stay in cache


def _make_tile(rows: int, vectors: int, differences: bool = False) -> Any:
    @intrinsic
    def tile(typingctx, a, lda, b, ldb, out, ldo, inner, accumulate):
        """out[:rows, :vectors] (+)= a[:rows, :inner] @ b[:inner, :vectors], from pointers to their first elements.

        With ``differences`` the terms are (b - a)^2 instead of a b.
        """
        signature = types.void(a, types.intp, b, types.intp, out, types.intp, types.intp, types.boolean)

        def codegen(context, builder, sig, args):
            a, lda, b, ldb, out, ldo, inner, accumulate = args
            element = sig.args[4].dtype
            scalar = context.get_value_type(element)
            lanes = VECTOR_BYTES // (element.bitwidth // 8)
            vector = ir.VectorType(scalar, lanes)
            index = lambda i: ir.Constant(ir.IntType(64), i)  # noqa: E731
            at = lambda pointer, offset: builder.gep(pointer, [offset])  # noqa: E731

            def load(pointer):
                value = builder.load(builder.bitcast(pointer, vector.as_pointer()), typ=vector)
                value.align = 4  # only the element's alignment is promised
                return value

            def store(value, pointer):
                builder.store(value, builder.bitcast(pointer, vector.as_pointer())).align = 4

            def broadcast(value):
                undefined = ir.Constant(vector, ir.Undefined)
                first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                return builder.shuffle_vector(first, undefined, zeros)

            name = f"llvm.fma.v{lanes}f{element.bitwidth}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            a_rows = [at(a, builder.mul(index(i), lda)) for i in range(rows)]
            places = [(i, v) for i in range(rows) for v in range(vectors)]
            out_tile = [at(out, builder.add(builder.mul(index(i), ldo), index(v * lanes))) for i, v in places]

            # for k in range(inner): sums[i, v] = fma(a[i, k], b[k, v], sums[i, v]), all sums in registers
            entry = builder.block
            body = builder.append_basic_block("tile.body")
            after = builder.append_basic_block("tile.after")
            builder.branch(body)
            builder.position_at_end(body)
            k = builder.phi(ir.IntType(64))
            k.add_incoming(index(0), entry)
            sums = [builder.phi(vector) for _ in places]
            b_row = at(b, builder.mul(k, ldb))
            b_vectors = [load(at(b_row, index(v * lanes))) for v in range(vectors)]
            factors = [broadcast(builder.load(at(row, k), typ=scalar)) for row in a_rows]
            updated = []
            for (i, v), partial in zip(places, sums):
                left, right = factors[i], b_vectors[v]
                if differences:
                    left = right = builder.fsub(right, left)
                updated.append(builder.call(fma, [left, right, partial]))
            following = builder.add(k, index(1))
            k.add_incoming(following, body)
            for phi, value in zip(sums, updated):
                phi.add_incoming(ir.Constant(vector, [0.0] * lanes), entry)
                phi.add_incoming(value, body)
            builder.cbranch(builder.icmp_signed("<", following, inner), body, after)

            builder.position_at_end(after)
            with builder.if_else(accumulate) as (add, put):
                with add:
                    for pointer, value in zip(out_tile, updated):
                        store(builder.fadd(load(pointer), value), pointer)
                with put:
                    for pointer, value in zip(out_tile, updated):
                        store(value, pointer)
            return context.get_dummy_value()

        return signature, codegen

    return tile


_tile = _make_tile(ROWS, VECTORS)
_tile_one_row = _make_tile(1, VECTORS)
_tile_one_vector = _make_tile(ROWS, 1)
_tile_least = _make_tile(1, 1)
_sq_dists_tile = _make_tile(ROWS, VECTORS, differences=True)
_sq_dists_one_row = _make_tile(1, VECTORS, differences=True)


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


def _export_for_arrays(name: str, function: Any) -> Any:
    """Compile the function for float32 and float64, and make what kernels call it by: f(a, b, out, accumulate)."""
    symbols = {element: f"fastdc_{name}_{element.name}" for element in (types.float32, types.float64)}
    for element, symbol in symbols.items():
        pointer = types.CPointer(element)
        sizes = [types.intp] * 4
        export(symbol, types.void(pointer, pointer, pointer, *sizes, types.boolean), function)

    @intrinsic
    def call(typingctx, a, b, out, accumulate):
        if not (a.dtype == b.dtype == out.dtype and out.dtype in symbols):
            raise TypingError(f"{name} needs three arrays of one dtype, float32 or float64, got {a}, {b}, {out}")

        def codegen(context, builder, signature, args):
            arrays = [context.make_array(t)(context, builder, v) for t, v in zip(signature.args[:3], args)]
            (m, inner), (_, n) = (cgutils.unpack_tuple(builder, array.shape) for array in arrays[:2])
            element = signature.args[2].dtype
            lanes = ir.Constant(m.type, VECTOR_BYTES // (element.bitwidth // 8))
            pointers = [array.data for array in arrays]
            arguments = [*pointers, m, inner, n, lanes, builder.zext(args[3], ir.IntType(8))]
            function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, symbols[element]), arguments)
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


@intrinsic
def lowest_bit(typingctx, mask):
    """Position of the lowest bit set in a uint64 other than zero."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), codegen


@intrinsic
def _bits_of(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _float_of(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


_f = np.float32
_SQRT_HALF_BITS = np.int32(0x3F3504F3)  # sqrt(1/2)
_MANTISSA = np.int32(0x007FFFFF)
_TWO_OVER_LN2 = 2.0 / math.log(2.0)
_A1, _A3, _A5, _A7, _A9 = (_f(_TWO_OVER_LN2 / odd) for odd in (1, 3, 5, 7, 9))
_E1, _E2, _E3, _E4, _E5, _E6, _E7 = (_f(math.log(2.0) ** n / math.factorial(n)) for n in range(1, 8))


_UPPER_HALF = np.int32(-4096)  # mask of a float32's sign, exponent and first 11 fraction bits


@jit(inline=True)
def _split_log2(x):
    """log2(x) as an integer and a remainder in [-1/2, 1/2]; x = 2**e * m with m in [sqrt(1/2), sqrt(2))."""
    shifted = _bits_of(x) - _SQRT_HALF_BITS
    e = _f(shifted >> np.int32(23))
    m = _float_of((shifted & _MANTISSA) + _SQRT_HALF_BITS)
    s = (m - _f(1.0)) / (m + _f(1.0))  # log2(m) = 2/ln2 atanh(s)
    s2 = s * s
    return e, s * (_A1 + s2 * (_A3 + s2 * (_A5 + s2 * (_A7 + s2 * _A9))))


@jit(inline=True)
def _log2_float32(x):
    e, remainder = _split_log2(x)
    return e + remainder


@jit(inline=True)
def _power_float32(x, y):
    e, remainder = _split_log2(x)
    # y e must lose nothing where it is large: the upper half of y times e is exact
    upper = _float_of(_bits_of(y) & _UPPER_HALF)
    exact = upper * e
    rest = (y - upper) * e + y * remainder
    whole = _f(np.floor(min(max(exact + rest, _f(-126.0)), _f(127.0)) + _f(0.5)))
    r = min(max((exact - whole) + rest, _f(-1.0)), _f(1.0))
    scale = _float_of((np.int32(whole) + np.int32(127)) << np.int32(23))
    polynomial = _E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7)))))
    return scale * (_f(1.0) + r * polynomial) if x > _f(0.0) else x * _f(0.0)


def log2(x: Any) -> Any:
    """Logarithm to base 2 inside kernels. float32: vectorises, within 3 ulp for normal x > 0; finite for x = 0."""
    raise RuntimeError("only for use inside kernels")


def power(x: Any, y: Any) -> Any:
    """x to the y inside kernels, x >= 0. float32: vectorises, within 4 ulp; results lie in [2^-127, 2^128)."""
    raise RuntimeError("only for use inside kernels")


@overload(log2, inline="never")
def _log2(x):
    if x == types.float32:
        return lambda x: _log2_float32(x)
    return lambda x: math.log2(max(x, 5e-324)) if x == x else x


@overload(power, inline="never")
def _power(x, y):
    if x == types.float32:
        return lambda x, y: _power_float32(x, y)
    return lambda x, y: x**y
