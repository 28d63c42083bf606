"""The schemas of the task store, oldest first; see CONTRIBUTING.md for a new one."""
