"""A model as data: files, reading, editing, shapes and counts. No runtime and no samples."""
