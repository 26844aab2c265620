"""Kernel rewrites: the same function in the operators and layouts that onnxruntime runs fastest."""
