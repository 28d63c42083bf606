"""From checkpoint files to parameters: names, streamed reads, strict checks."""
