"""Architecture search: candidates are ONNX files, built operator by operator, scored by the clock and the data."""
