"""The demo: a page in the browser on which a concept goes and everything else stays."""
