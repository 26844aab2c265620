"""An ONNX graph as a differentiable program, and training it (extra: train)."""
