"""Clips for training and annotation: manifests, shards, importers, alignment."""
