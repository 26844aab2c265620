"""Q/DQ pairs and integer operators: where they stand, and how they are written."""
