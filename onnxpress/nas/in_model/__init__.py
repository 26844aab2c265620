"""Search inside a given model: parts of it are kept or replaced by cheaper ones."""
