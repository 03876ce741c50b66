"""Three inner loops that LLVM would not vectorise by itself.

Over 64 rows in vector lanes, ``sq_distances`` measures rows to one center by differences and ``two_smallest``
keeps the best center of each lane, and the runner-up's score, in registers while it runs over centers.
``row_products`` multiplies a few rows with a few centers where both lie, features in the lanes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from fastdc.kernels._vectors import LANES, ROWS, VECTORS, Vectors, index, intrinsic, loop


@intrinsic
def sq_distances(typingctx, columns, center, center_start, out, out_start, n_features, lane):
    """out[lane …] = sum over features of (columns[d, lane …] - center[d])^2 for VECTORS vectors of lanes."""
    signature = types.void(columns, center, types.intp, out, types.intp, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        columns, center, center_start, out, out_start, n_features, lane = args
        v = Vectors(context, builder, sig.args[0].dtype)
        columns_data = v.data(sig.args[0], columns, lane)
        center_data = v.data(sig.args[1], center, center_start)

        def body(d, sums):
            coordinate = v.broadcast(builder.load(v.at(center_data, d), typ=v.scalar))
            column = v.at(columns_data, builder.mul(d, index(LANES)))
            updated = []
            for i, total in enumerate(sums):
                difference = builder.fsub(v.load(v.at(column, index(i * v.size))), coordinate)
                updated.append(v.fma(difference, difference, total))
            return updated

        sums = loop(builder, n_features, [v.zeros()] * VECTORS, body)
        target = v.at(v.data(sig.args[3], out, out_start), lane)
        for i, total in enumerate(sums):
            v.store(total, v.at(target, index(i * v.size)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def two_smallest(typingctx, tile, offsets, first, count, best, second, nearest, lane):
    """Take in scores offsets[first + j] + tile[j, lane …], j < count: best, its index, second best.

    An equal score never replaces an earlier one, and NaN is neither best nor second. ``nearest`` holds
    integers as wide as the scores.
    """
    signature = types.void(tile, offsets, types.intp, types.intp, best, second, nearest, types.intp)

    def codegen(context, builder, sig, args):
        tile, offsets, first, count, best, second, nearest, lane = args
        v = Vectors(context, builder, sig.args[0].dtype)
        tile_data = v.data(sig.args[0], tile, lane)
        offsets_data = v.data(sig.args[1], offsets, first)
        pointers = [
            v.at(v.data(array_type, array, lane), index(i * v.size))
            for array_type, array in ((sig.args[4], best), (sig.args[5], second), (sig.args[6], nearest))
            for i in range(VECTORS)
        ]
        kinds = [v.type] * (2 * VECTORS) + [v.integers] * VECTORS

        def body(j, carried):
            offset = v.broadcast(builder.load(v.at(offsets_data, j), typ=v.scalar))
            number = builder.add(first, j)
            number = v.broadcast(number if v.bits == 64 else builder.trunc(number, ir.IntType(v.bits)))
            row = v.at(tile_data, builder.mul(j, index(LANES)))
            bests, seconds, indices = [], [], []
            for i in range(VECTORS):
                smallest, runner_up, winner = carried[i], carried[VECTORS + i], carried[2 * VECTORS + i]
                score = builder.fadd(v.load(v.at(row, index(i * v.size))), offset)
                closer = builder.fcmp_ordered("<", score, smallest)
                loser = builder.select(closer, smallest, score)
                seconds.append(builder.select(builder.fcmp_ordered("<", loser, runner_up), loser, runner_up))
                bests.append(builder.select(closer, score, smallest))
                indices.append(builder.select(closer, number, winner))
            return bests + seconds + indices

        results = loop(builder, count, [v.load(p, kind) for p, kind in zip(pointers, kinds)], body)
        for pointer, value in zip(pointers, results):
            v.store(value, pointer)
        return context.get_dummy_value()

    return signature, codegen


def _make_row_products(n_centers: int) -> Any:
    @intrinsic
    def row_products(typingctx, x, rows, first_row, shift, factors, first_center, tile, place, stride):
        """tile[place + j * stride + i] = (x[rows[first_row + i]] - shift) . factors[first_center + j].

        For VECTORS rows i and n_centers centers j; x and factors (…, n_features) with at least a vector of features.
        """
        signature = types.void(x, rows, types.intp, shift, factors, types.intp, tile, types.intp, types.intp)

        def codegen(context, builder, sig, args):
            x, rows, first_row, shift, factors, first_center, tile, place, stride = args
            v = Vectors(context, builder, sig.args[0].dtype)
            n_features = builder.extract_value(context.make_array(sig.args[0])(context, builder, x).shape, 1)
            numbers = v.data(sig.args[1], rows, first_row)
            starts = [builder.mul(builder.load(v.at(numbers, index(i))), n_features) for i in range(VECTORS)]
            x_rows = [v.data(sig.args[0], x, start) for start in starts]
            places = [builder.mul(builder.add(first_center, index(j)), n_features) for j in range(n_centers)]
            c_rows = [v.data(sig.args[4], factors, start) for start in places]
            shifts = v.data(sig.args[3], shift, index(0))

            def add(d, sums, load):
                offset = load(v.at(shifts, d))
                left = [builder.fsub(load(v.at(row, d)), offset) for row in x_rows]
                right = [load(v.at(row, d)) for row in c_rows]
                pairs = [(a, b) for b in right for a in left]
                return [v.fma(a, b, total) for (a, b), total in zip(pairs, sums)]

            def body(i, sums):
                return add(builder.mul(i, index(v.size)), sums, v.load)

            whole = builder.udiv(n_features, index(v.size))
            sums = loop(builder, whole, [v.zeros()] * (n_centers * VECTORS), body)
            done = builder.mul(whole, index(v.size))
            left_over = v.below(builder.sub(n_features, done))
            sums = add(done, sums, lambda pointer: v.load_some(pointer, left_over))
            out = v.data(sig.args[6], tile, place)
            for position, total in enumerate(sums):
                j, i = divmod(position, VECTORS)
                target = v.at(out, builder.add(builder.mul(index(j), stride), index(i)))
                builder.store(v.total(total, reassociate=True), target)
            return context.get_dummy_value()

        return signature, codegen

    return row_products


row_products = _make_row_products(ROWS)
row_products_one = _make_row_products(1)
