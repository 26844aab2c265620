"""Samples: datasets, readers of every form, preprocessing recipes, synthetic inputs."""
