"""What all families share: the contract of a pass, least-squares refit, rounding and allocation."""
