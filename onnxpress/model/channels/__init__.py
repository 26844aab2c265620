"""Channels that can be removed together: label propagation, coupled slices, groups and removal."""
