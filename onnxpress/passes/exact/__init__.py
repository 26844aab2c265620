"""Rewrites that keep the function for every input."""
