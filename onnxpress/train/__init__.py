"""An ONNX graph as a differentiable program, and training it (needs the extra `train`)."""
