"""Small sources of every format, damage to their files, and what is read from them."""
