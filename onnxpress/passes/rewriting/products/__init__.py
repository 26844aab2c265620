"""Products of matrices, attention and normalization."""
