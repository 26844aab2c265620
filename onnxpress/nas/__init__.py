"""Architecture search: candidates are ONNX files, built operator by operator and scored by latency and quality."""
