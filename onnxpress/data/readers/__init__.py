"""One file a source of samples: arrays, pictures, audio, text, tables, protobufs and Python objects."""
