"""Libraries behind the measuring commands: take a Pipeline, return dataclasses, print nothing."""
