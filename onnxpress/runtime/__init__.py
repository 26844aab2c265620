"""Execution of models on this machine: sessions, isolation, latency, profiles and machine facts."""
