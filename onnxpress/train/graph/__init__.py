"""An ONNX graph as a torch program: compilation, operators by name, fusion and trainable weights."""
