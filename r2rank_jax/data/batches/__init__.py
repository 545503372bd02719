"""Batches of lists as arrays, for training, evaluation and ranking.

In come a dataset or a user's own requests, a tokenizer and a configuration. Out come batches of `types.ListBatch`, with
rationales if there are traces. Grain loads the batches, and they are the same for any number of processes.
"""
