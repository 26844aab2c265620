"""Strategies that propose candidates, and the study that stores them."""
