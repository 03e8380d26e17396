"""One trained method a file: its options and its function, which makes a lesson of a bench."""
