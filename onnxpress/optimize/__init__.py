"""Options, costs and harms become a plan; the loop that measures, and the contract it is held to."""
