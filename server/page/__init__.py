"""The page at `/`: HTML, style sheets and ES modules, sent as they are by `server/api/page.py`."""
