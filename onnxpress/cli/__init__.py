"""One file a command: parses, calls the API, prints."""
