"""Pictures of what was measured: a run's record as one HTML file, Markdown or JSON."""
