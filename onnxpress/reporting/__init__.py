"""Run records as HTML, Markdown or JSON reports."""
