"""Three inner loops that LLVM would not vectorise by itself, each over 64 rows in vector lanes.

``transpose`` brings rows into lanes, ``sq_distances`` measures them to one center by differences,
``two_smallest`` keeps the best center of each lane, and the runner-up's score, in registers while it runs
over centers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastdc.kernels._simd import LANES, VECTOR_BYTES, VECTORS

# typed as Any because the first of its arguments, the typing context, is passed by Numba
_intrinsic: Any = intrinsic


def _index(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


class _Vectors:
    """Vectors of one array's dtype: loads, stores and broadcasts."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_value_type(dtype)
        self.size = VECTOR_BYTES // (dtype.bitwidth // 8)
        self.bits = dtype.bitwidth
        self.type = ir.VectorType(self.scalar, self.size)
        self.integers = ir.VectorType(ir.IntType(self.bits), self.size)

    def data(self, array_type: Any, array: Any, start: Any) -> Any:
        """Pointer to element ``start`` of a contiguous array."""
        pointer = self.context.make_array(array_type)(self.context, self.builder, array).data
        return self.builder.gep(pointer, [start])

    def load(self, pointer: Any, vector: Any = None) -> Any:
        vector = self.type if vector is None else vector
        value = self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()), typ=vector)
        value.align = 4  # only the element's alignment is promised
        return value

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = 4

    def at(self, pointer: Any, offset: Any) -> Any:
        return self.builder.gep(pointer, [offset])

    def broadcast(self, value: Any) -> Any:
        vector = ir.VectorType(value.type, self.size)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.size), [0] * self.size)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), self.size), lanes))

    def zeros(self) -> Any:
        return ir.Constant(self.type, [0.0] * self.size)


def _loop(builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """``for i in range(count): carried = body(i, carried)``, the carried values in registers; count >= 1."""
    before = builder.block
    inside = builder.append_basic_block("lanes.body")
    after = builder.append_basic_block("lanes.after")
    builder.branch(inside)
    builder.position_at_end(inside)
    i = builder.phi(ir.IntType(64))
    i.add_incoming(_index(0), before)
    phis = [builder.phi(value.type) for value in carried]
    results = body(i, phis)
    following = builder.add(i, _index(1))
    i.add_incoming(following, inside)
    for phi, start, result in zip(phis, carried, results):
        phi.add_incoming(start, before)
        phi.add_incoming(result, inside)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    return results


@_intrinsic
def transpose(typingctx, x, x_start, x_stride, shift, shift_start, out, out_start):
    """out[d, lane] = x[lane, d] - shift[d] for one square of vector size; out has 64 columns."""
    signature = types.void(x, types.intp, types.intp, shift, types.intp, out, types.intp)

    def codegen(context, builder, sig, args):
        x, x_start, x_stride, shift, shift_start, out, out_start = args
        v = _Vectors(context, builder, sig.args[0].dtype)
        first = v.data(sig.args[0], x, x_start)
        offset = v.load(v.data(sig.args[3], shift, shift_start))
        rows = [builder.fsub(v.load(v.at(first, builder.mul(_index(i), x_stride))), offset) for i in range(v.size)]
        step = 1
        while step < v.size:  # swap the off-diagonal blocks of size step
            lower = [p + v.size - step if p & step else p for p in range(v.size)]
            upper = [p + v.size if p & step else p + step for p in range(v.size)]
            for i in range(v.size):
                if not i & step:
                    a, b = rows[i], rows[i + step]
                    rows[i], rows[i + step] = v.shuffle(a, b, lower), v.shuffle(a, b, upper)
            step *= 2
        target = v.data(sig.args[5], out, out_start)
        for i, row in enumerate(rows):
            v.store(row, v.at(target, _index(i * LANES)))
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def sq_distances(typingctx, columns, center, center_start, out, out_start, n_features, lane):
    """out[lane …] = sum over features of (columns[d, lane …] - center[d])^2 for VECTORS vectors of lanes."""
    signature = types.void(columns, center, types.intp, out, types.intp, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        columns, center, center_start, out, out_start, n_features, lane = args
        v = _Vectors(context, builder, sig.args[0].dtype)
        name = f"llvm.fma.v{v.size}f{v.bits}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(v.type, [v.type] * 3), name)
        columns_data = v.data(sig.args[0], columns, lane)
        center_data = v.data(sig.args[1], center, center_start)

        def body(d, sums):
            coordinate = v.broadcast(builder.load(v.at(center_data, d), typ=v.scalar))
            column = v.at(columns_data, builder.mul(d, _index(LANES)))
            updated = []
            for i, total in enumerate(sums):
                difference = builder.fsub(v.load(v.at(column, _index(i * v.size))), coordinate)
                updated.append(builder.call(fma, [difference, difference, total]))
            return updated

        sums = _loop(builder, n_features, [v.zeros()] * VECTORS, body)
        target = v.at(v.data(sig.args[3], out, out_start), lane)
        for i, total in enumerate(sums):
            v.store(total, v.at(target, _index(i * v.size)))
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def two_smallest(typingctx, tile, offsets, first, count, best, second, nearest, lane):
    """Take in scores offsets[first + j] + tile[j, lane …], j < count: best, its index, second best.

    An equal score never replaces an earlier one, and NaN is neither best nor second. ``nearest`` holds
    integers as wide as the scores.
    """
    signature = types.void(tile, offsets, types.intp, types.intp, best, second, nearest, types.intp)

    def codegen(context, builder, sig, args):
        tile, offsets, first, count, best, second, nearest, lane = args
        v = _Vectors(context, builder, sig.args[0].dtype)
        tile_data = v.data(sig.args[0], tile, lane)
        offsets_data = v.data(sig.args[1], offsets, first)
        pointers = [
            v.at(v.data(array_type, array, lane), _index(i * v.size))
            for array_type, array in ((sig.args[4], best), (sig.args[5], second), (sig.args[6], nearest))
            for i in range(VECTORS)
        ]
        kinds = [v.type] * (2 * VECTORS) + [v.integers] * VECTORS

        def body(j, carried):
            offset = v.broadcast(builder.load(v.at(offsets_data, j), typ=v.scalar))
            number = builder.add(first, j)
            number = v.broadcast(number if v.bits == 64 else builder.trunc(number, ir.IntType(v.bits)))
            row = v.at(tile_data, builder.mul(j, _index(LANES)))
            bests, seconds, indices = [], [], []
            for i in range(VECTORS):
                smallest, runner_up, index = carried[i], carried[VECTORS + i], carried[2 * VECTORS + i]
                score = builder.fadd(v.load(v.at(row, _index(i * v.size))), offset)
                closer = builder.fcmp_ordered("<", score, smallest)
                loser = builder.select(closer, smallest, score)
                seconds.append(builder.select(builder.fcmp_ordered("<", loser, runner_up), loser, runner_up))
                bests.append(builder.select(closer, score, smallest))
                indices.append(builder.select(closer, number, index))
            return bests + seconds + indices

        results = _loop(builder, count, [v.load(p, kind) for p, kind in zip(pointers, kinds)], body)
        for pointer, value in zip(pointers, results):
            v.store(value, pointer)
        return context.get_dummy_value()

    return signature, codegen
