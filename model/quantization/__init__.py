"""Weights in 8 or 4 bits: how they are rounded, held, multiplied, and written to disk."""
