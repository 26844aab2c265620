"""Knowledge distillation from one ONNX file to another."""
