"""Structured pruning: importance, allocation, removal and refit of channels."""
