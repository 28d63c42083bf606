"""The life of a task from admission to its one end."""
