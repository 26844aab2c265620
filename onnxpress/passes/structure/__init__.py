"""Changes of the architecture: depth, low rank, cheaper convolutions and attention."""
