"""Shared by all training runs: the run folder, recipes, parallel processes, sharded state."""
