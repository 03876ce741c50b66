"""Points as combinations of one another: losses, closed forms and sparse codes whose diagonal is zero."""

from fastdc.kernels.self_expression.closed_form import (
    SelfExpression,
    low_rank_self_expression,
    ridge_self_expression,
)
from fastdc.kernels.self_expression.loss import self_expression_loss
from fastdc.kernels.self_expression.op import orthogonal_matching_pursuit

__all__ = [
    "SelfExpression",
    "low_rank_self_expression",
    "orthogonal_matching_pursuit",
    "ridge_self_expression",
    "self_expression_loss",
]
