"""Search spaces: the network builder, blocks, cells, and spaces written in Python or TOML."""
