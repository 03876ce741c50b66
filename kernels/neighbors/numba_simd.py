"""The filter beneath the CPU kernels: which of 64 lanes have a product above their bound, as a bit mask."""

from __future__ import annotations

from llvmlite import ir
from numba import types

from fastdc.kernels._vectors import LANES, Vectors, intrinsic


@intrinsic
def above(typingctx, tile, start, bounds, offsets, offset, bound):
    """Bit l: tile[start + l] exceeds offset + bounds[l] or bound + offsets[l], or is not a number."""
    signature = types.uint64(tile, types.intp, bounds, offsets, offset, bound)

    def codegen(context, builder, sig, args):
        tile, start, bounds, offsets, offset, bound = args
        v = Vectors(context, builder, sig.args[0].dtype)
        zero = ir.Constant(ir.IntType(64), 0)
        tile_data = v.data(sig.args[0], tile, start)
        bounds_data = v.data(sig.args[2], bounds, zero)
        offsets_data = v.data(sig.args[3], offsets, zero)
        offset, bound = v.broadcast(offset), v.broadcast(bound)
        mask = zero
        for lane in range(0, LANES, v.size):
            place = ir.Constant(ir.IntType(64), lane)
            mine = builder.fadd(offset, v.load(v.at(bounds_data, place)))
            other = builder.fadd(bound, v.load(v.at(offsets_data, place)))
            least = builder.select(builder.fcmp_ordered("<", mine, other), mine, other)
            hit = builder.fcmp_unordered(">", v.load(v.at(tile_data, place)), least)
            bits = builder.zext(builder.bitcast(hit, ir.IntType(v.size)), ir.IntType(64))
            mask = builder.or_(mask, builder.shl(bits, place))
        return mask

    return signature, codegen
