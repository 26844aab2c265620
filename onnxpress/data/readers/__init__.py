"""One reader per form of data: arrays, images, audio, text, tables, protobufs and Python objects."""
