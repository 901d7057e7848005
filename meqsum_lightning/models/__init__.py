"""Backbones, adapters, the Lightning module and the state of a training."""
