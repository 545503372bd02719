"""The contents of a prepared folder, and how to read them.

The input is the path of a folder that `data/prepare/` wrote. The output is its settings and manifest, its users, items
and histories as arrays, its frozen candidate lists, and the rationales that SFT learns from. This package also defines
everything that the writer and the reader must agree on: splits, file names and hashes.
"""
