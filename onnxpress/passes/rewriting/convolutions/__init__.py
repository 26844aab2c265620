"""Convolutions of pictures and what stands between them, in the blocked layout of onnxruntime."""
