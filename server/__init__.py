"""API, tasks, engine and worker of the server; the only package that imports the others."""
