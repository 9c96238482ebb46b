"""Evaluation: benchmarks are data, metrics are functions, and `run` scores systems in one table."""
