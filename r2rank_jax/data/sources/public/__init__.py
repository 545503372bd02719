"""Readers of the public data sets, each in its publisher's own format.

The input is the files of MovieLens, RecBole, Amazon Reviews, Yelp or Steam. The output is a `schema.Source` that reads
them.
"""
