"""Fault injection: what is harmed, how, and what must be left of it."""
