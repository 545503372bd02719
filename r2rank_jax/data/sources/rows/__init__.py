"""Text of any size to checked rows, for every source alike.

In come the lines of delimited or JSON files, gzipped or not. Out come interactions and items in the columns of
`schema.py`; a line that cannot be read is reported with its file and number.
"""
