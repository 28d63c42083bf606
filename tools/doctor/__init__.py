"""Checks of a machine, its settings and a checkpoint, before anything is loaded."""
