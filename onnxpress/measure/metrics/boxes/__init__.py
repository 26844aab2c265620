"""Detections: what boxes the outputs of a detector mean, and how they are matched."""
