"""Smaller files: codebooks, weight-only integers, 16-bit floats and zeros."""
