"""Joins data, models and metrics: the Lightning module, the training job, the commands."""
