"""The public data sets, each in its publisher's own form.

In come the files of MovieLens, RecBole, Amazon Reviews, Yelp or Steam. Out comes a `schema.Source` that reads them.
"""
