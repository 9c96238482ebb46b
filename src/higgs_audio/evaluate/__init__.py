"""Evaluation: sentences and voices are data, metrics are functions, and `run` turns systems into one table."""
