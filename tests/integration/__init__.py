"""Tests of the interplay of several modules."""
