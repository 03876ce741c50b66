"""Benchmarks: ``python -m bench --op dec_loss`` measures, ``python -m bench.report`` shows the results."""
