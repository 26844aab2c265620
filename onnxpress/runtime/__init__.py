"""A model run on this machine: sessions, isolation, latency, machine facts."""
