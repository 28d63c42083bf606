"""Migrations of the task store: one file a schema, run by server/tasks/database.py."""
