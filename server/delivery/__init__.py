"""How finished images leave the server."""
