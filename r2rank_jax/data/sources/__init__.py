"""The files of a recommendation data set, as two streams of tables.

In comes a folder or a file as its publisher, or its owner, wrote it. Out come batches of one interaction table and of
one item table, both with the columns of `schema.py`. `source.py` recognizes which data set lies at a path.
"""
