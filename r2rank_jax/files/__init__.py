"""File and network operations that do not depend on what the bytes mean.

The input is paths, addresses and archives. The output is complete files with verified hashes, or an error without
partial files.
"""
