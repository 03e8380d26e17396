"""From prompts to an erasure."""
