"""Contingency tables: one pass over two label vectors, from which every agreement score follows."""

from fastdc.kernels.contingency.labels import as_integers
from fastdc.kernels.contingency.op import contingency_table
from fastdc.kernels.contingency.table import ContingencyTable

__all__ = ["ContingencyTable", "as_integers", "contingency_table"]
