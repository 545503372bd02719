"""Readers of the public data sets' files: each gives batches of one interaction table and of one item table."""
