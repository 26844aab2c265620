"""A model run on this machine: sessions, isolation, latency, profiles and machine facts."""
