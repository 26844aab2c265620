"""The search behind optimize: candidates, timings, finalists and the choice among them."""
