"""Student-t soft assignment, the target distribution and the DEC loss."""

from fastdc.kernels.student_t.op import (
    StudentTStatistics,
    dec_loss,
    student_t_assign,
    student_t_statistics,
    target_distribution,
)

__all__ = [
    "StudentTStatistics",
    "dec_loss",
    "student_t_assign",
    "student_t_statistics",
    "target_distribution",
]
