"""Forms that files have and passes do not want to meet, each turned into the one that they expect."""
