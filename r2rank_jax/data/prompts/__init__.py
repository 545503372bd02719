"""The text that a model reads, and its token ids.

In come the titles, ratings and times of a user's history and of a candidate. Out come the text of a prompt in the words
of one template, and the ids of a tokenizer, framed by its chat template if it has one. No title can change the
structure of a prompt.
"""
