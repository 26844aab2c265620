"""Plans that replay, the contract of a result, run records and the candidate store."""
