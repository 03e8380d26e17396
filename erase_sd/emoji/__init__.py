"""The embedded model: its world, its pictures, its judge and its shipped weights."""
