"""One file a lever: what could be done to which unit of a model, and doing it."""
