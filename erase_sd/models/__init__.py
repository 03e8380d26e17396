"""What is edited: architectures, checkpoints, files."""
