"""Convert text of any size to checked rows. All sources share this code.

The input is the lines of delimited or JSON files, gzipped or not. The output is interactions and items in the columns
of `schema.py`; a line that cannot be read is reported with its file and number.
"""
