"""Evaluation: benchmarks (data), metrics (functions), and `run`, which scores systems in one table."""
