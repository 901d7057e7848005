"""Backbones, adapters, losses and optimizers: what a model is, not how a run goes."""
