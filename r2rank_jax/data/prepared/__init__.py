"""The contents of a prepared folder, and how to read them.

In comes the path of a folder that `data/prepare/` wrote. Out come its settings and manifest, its users, items and
histories as arrays, its frozen candidate lists, and the rationales that SFT learns from. This package also defines
everything that the writer and the reader must agree on: splits, file names and hashes.
"""
