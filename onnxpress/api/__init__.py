"""One pass on one model, large models by streaming, inspection, and distillation sessions, as Python functions."""
