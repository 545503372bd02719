"""What a prepared folder holds, and how it is read back.

In comes the path of a folder that `data/prepare/` wrote. Out come its settings and manifest, its users, items and
histories as arrays, its frozen candidate lists, and the rationales that SFT learns from. Whatever both writing and
reading must agree on (splits, names of files, hashes) is decided here.
"""
