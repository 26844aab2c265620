"""Samples: opened from files and Python objects, checked against a model's inputs, split and batched."""
