"""Batches of lists as arrays, for training, evaluation and ranking.

The input is a dataset or a user's own requests, a tokenizer and a configuration. The output is batches of
`types.ListBatch`, with rationales if there are traces. Grain loads them, and they are the same for any number of
processes.
"""
