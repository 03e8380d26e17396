"""Erasures and what they say of themselves."""
