"""How much memory an update needs, and how many items it can therefore read at once."""
