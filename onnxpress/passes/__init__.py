"""One folder a family, one file a pass: what could be done to which unit of a model, and doing it."""
