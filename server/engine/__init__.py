"""Worker processes seen from the event loop."""
