"""Task metrics: what a model is judged by, each in the unit in which its users state it."""
