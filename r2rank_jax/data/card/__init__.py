"""The data card: what a prepared folder holds and how it was made.

The input is a prepared folder that passes its audit. The output is statistics as JSON, figures, and a page for people
that shows both.
"""
