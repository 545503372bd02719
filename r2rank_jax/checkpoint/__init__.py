"""Checkpoints that are committed as a whole, sealed with checksums, and verified before they are used."""
