"""The embedded model: a world, its pictures, three networks trained on them, their measurement."""
