"""Evaluation of candidate networks: costs, zero-cost proxies, latency prediction and training."""
