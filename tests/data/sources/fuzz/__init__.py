"""Small valid sources, and random damage to their files."""
