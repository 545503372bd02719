"""The commands that train, evaluate and rank, as scripts to read from top to bottom."""
