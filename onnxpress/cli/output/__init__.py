"""What the commands print and write: tables, JUnit XML and Markdown."""
