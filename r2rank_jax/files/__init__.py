"""File and network operations that do not depend on what the bytes mean.

In come paths, addresses and archives. Out come complete files with verified hashes, or an error without partial files.
"""
