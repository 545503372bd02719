"""The data card: what a prepared folder holds and how it was made.

In comes a prepared folder that passes its audit. Out come statistics as JSON, figures, and a page for people that shows
both.
"""
