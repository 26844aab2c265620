"""What a model file is by its content, and how it becomes an ONNX file."""
