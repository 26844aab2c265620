"""Evidence about one model on one set of samples: statistics of inner values, metrics and scores."""
