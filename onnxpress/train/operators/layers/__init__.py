"""Operators of layers: products, convolutions, pooling, normalization, attention and recurrence."""
