"""The inner loop of graph kernels: what a node's neighbours add up to, with the sums in vector registers.

A pass over the neighbours covers ``WIDE`` vectors of features at most; the last vector of a row may be ragged and
is loaded and stored under a mask. While one neighbour is added, one that comes later is fetched into cache.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastdc.kernels._vectors import VECTOR_BYTES, Vectors, index, intrinsic, loop

WIDE = 4  # vectors of a pass
AHEAD = 16  # neighbours that the fetching is ahead
LINE = 64  # bytes of a cache line


def _make_pull(vectors: int, differences: bool) -> Any:
    @intrinsic
    def pull(typingctx, x, node, column, neighbors, ids, weights, first, last, out, row):
        """Of features [column, column + vectors) of x (n, d), over entries first <= p < last, which is at least one.

        With w = weights[ids[p]], weights[p] without ids, or 1 without weights: out[row] = sum of w x[neighbors[p]];
        with ``differences`` sum of w (x[node] - x[neighbors[p]]), and the sum of w (x[node] - x[neighbors[p]])^2
        is returned.
        """
        signature = x.dtype(x, types.intp, types.intp, neighbors, ids, weights, types.intp, types.intp, out, types.intp)

        def codegen(context, builder, sig, args):
            x, node, column, neighbors, ids, weights, first, last, out, row = args
            x_type, neighbors_type, ids_type, weights_type, out_type = (sig.args[i] for i in (0, 3, 4, 5, 8))
            v = Vectors(context, builder, x_type.dtype)
            features = cgutils.unpack_tuple(builder, context.make_array(x_type)(context, builder, x).shape)[1]
            x_data = v.at(v.data(x_type, x, index(0)), column)
            neighbors_array = context.make_array(neighbors_type)(context, builder, neighbors)
            n_entries = cgutils.unpack_tuple(builder, neighbors_array.shape)[0]
            lanes = _Lanes(v, builder.sub(features, column), vectors)

            def element(array_type, array, place):
                return builder.load(v.data(array_type, array, place))

            def number_at(array_type, array, place):
                number = element(array_type, array, place)
                return builder.sext(number, ir.IntType(64)) if number.type.width < 64 else number

            def row_at(place):
                return v.at(x_data, builder.mul(number_at(neighbors_type, neighbors, place), features))

            own = lanes.load(v.at(x_data, builder.mul(node, features))) if differences else []

            def body(step, carried):
                place = builder.add(first, step)
                later = builder.add(place, index(AHEAD))
                inside = builder.icmp_signed("<", later, n_entries)
                later = builder.select(inside, later, place)
                _fetch(v, row_at(later), vectors * VECTOR_BYTES)
                if ids_type is not types.none:
                    _fetch(v, v.data(weights_type, weights, number_at(ids_type, ids, later)), 1)
                other = lanes.load(row_at(place))
                if weights_type is types.none:
                    weight = ir.Constant(v.scalar, 1.0)
                elif ids_type is types.none:
                    weight = element(weights_type, weights, place)
                else:
                    weight = element(weights_type, weights, number_at(ids_type, ids, place))
                weight = v.broadcast(weight)
                if not differences:
                    return [v.fma(weight, b, total) for b, total in zip(other, carried)]
                differ = [builder.fsub(a, b) for a, b in zip(own, other)]
                weighted = [builder.fmul(weight, difference) for difference in differ]
                sums = [builder.fadd(total, term) for total, term in zip(carried, weighted)]
                return sums + [v.fma(a, b, total) for a, b, total in zip(weighted, differ, carried[vectors:])]

            n_carried = 2 * vectors if differences else vectors
            totals = loop(builder, builder.sub(last, first), [v.zeros()] * n_carried, body)
            out_features = cgutils.unpack_tuple(builder, context.make_array(out_type)(context, builder, out).shape)[1]
            target = v.at(v.at(v.data(out_type, out, index(0)), builder.mul(row, out_features)), column)
            lanes.store(totals[:vectors], target)
            squares = v.zeros()
            for total in totals[vectors:]:
                squares = builder.fadd(squares, total)
            return v.total(squares)

        return signature, codegen

    return pull


class _Lanes:
    """A row's vectors, the last of which may be ragged; lanes beyond the row load as zero and are not stored."""

    def __init__(self, v: Vectors, width: Any, vectors: int) -> None:
        self.v, self.vectors = v, vectors
        self.mask = v.below(v.builder.sub(width, index((vectors - 1) * v.size)))

    def _places(self, pointer: Any) -> list[Any]:
        return [self.v.at(pointer, index(i * self.v.size)) for i in range(self.vectors)]

    def load(self, pointer: Any) -> list[Any]:
        *whole, ragged = self._places(pointer)
        return [*map(self.v.load, whole), self.v.load_some(ragged, self.mask)]

    def store(self, values: list[Any], pointer: Any) -> None:
        *whole, ragged = self._places(pointer)
        for value, place in zip(values, whole):
            self.v.store(value, place)
        self.v.store_some(values[-1], ragged, self.mask)


def _fetch(v: Vectors, pointer: Any, length: int) -> None:
    """Ask for the cache lines of so many bytes."""
    byte = ir.IntType(8).as_pointer()
    name = "llvm.prefetch.p0"
    number = ir.IntType(32)
    function_type = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(v.builder.module, function_type, name)
    first = v.builder.bitcast(pointer, byte)
    for offset in range(0, length, LINE):
        place = v.builder.gep(first, [index(offset)])
        v.builder.call(function, [place, *(ir.Constant(number, value) for value in (0, 3, 1))])


PULL_DIFFERENCES = [_make_pull(vectors, True) for vectors in range(1, WIDE + 1)]
PULL = [_make_pull(vectors, False) for vectors in range(1, WIDE + 1)]
