"""Moments, edits and certificates: torch only."""
