"""What all training runs share: the run folder, recipes, parallel processes, sharded state."""
