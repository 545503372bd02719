"""Servers that run here."""
