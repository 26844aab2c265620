"""Replacements: every part of a model is kept or gets one of several cheaper forms."""
