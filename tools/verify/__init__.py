"""Proof of the implementation against recorded tensors (`hyimage verify`)."""
