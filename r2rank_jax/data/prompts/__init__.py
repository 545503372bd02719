"""The text that a model reads, and its token ids.

The input is the titles, ratings and times of a user's history and of a candidate. The output is the text of a prompt in
the words of one template, with its structure intact whatever a title contains, and the ids of a tokenizer, framed by
its chat template if it has one.
"""
