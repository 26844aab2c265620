"""Evidence: streams of inner values, ranges, Gram matrices, metrics, scores."""
