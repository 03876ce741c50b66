"""Two inner loops that LLVM would not vectorise by itself, each over 64 rows in vector lanes.

``sq_distances`` measures rows to one center by differences, ``two_smallest`` keeps the best center of each
lane, and the runner-up's score, in registers while it runs over centers.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from fastdc.kernels._vectors import LANES, VECTORS, Vectors, index, intrinsic, loop


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
