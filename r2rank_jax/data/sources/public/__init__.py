"""Readers of the public data sets, each in its publisher's own format.

In come the files of MovieLens, RecBole, Amazon Reviews, Yelp or Steam. Out comes a `schema.Source` that reads them.
"""
