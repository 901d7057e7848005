"""Builds the parts and runs the Lightning trainer: `train`, `evaluate`, `predict`."""
