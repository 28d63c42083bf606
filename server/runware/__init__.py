"""Runware's wire format: bodies, checks, errors, seeds, prices. Pure: no I/O, no FastAPI."""
