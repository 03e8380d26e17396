"""The `erase-concept` command."""
