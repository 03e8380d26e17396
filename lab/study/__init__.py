"""The method study: what is erased, how it is measured, what is tried, how it is told."""
