"""Read the files of a recommendation data set as two streams of tables.

The input is a folder or a file as its publisher or owner wrote it. The output is batches of one interaction table and of one
item table, both with the columns of `schema.py`. `source.py` recognizes the data set at a path.
"""
