"""The `hyimage` command. The only package that prints."""
