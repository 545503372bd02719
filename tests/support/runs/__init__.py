"""Runs and their directories."""
