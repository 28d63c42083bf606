"""The process that owns the weights and generates."""
