"""Prompts to feature rows."""
