"""Rows, splits, tokens and batches."""
