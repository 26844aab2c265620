"""A model as data: files, reading, editing, channels, counts. No runtime, no samples."""
