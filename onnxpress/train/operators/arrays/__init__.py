"""Operators that move, select and count elements."""
