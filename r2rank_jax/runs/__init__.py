"""The commands as bannered scripts that read from top to bottom."""
