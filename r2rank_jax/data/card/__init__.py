"""What a prepared folder holds and how it was made.

In comes a prepared folder that passes its audit. Out come numbers as JSON, figures, and a page of both for people.
"""
