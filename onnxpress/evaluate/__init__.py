"""Latency and accuracy of finished models: bench, gates, baselines, compare and profile comparison."""
