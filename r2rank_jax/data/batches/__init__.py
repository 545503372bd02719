"""Lists as arrays: what training and evaluation iterate over.

In come a dataset or a user's own requests, a tokenizer and a configuration. Out come batches of `types.ListBatch`, with
rationales where there are traces, through Grain, the same for any number of processes.
"""
