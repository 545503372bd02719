"""The words that a model reads, and the tokens they become.

In come the titles, ratings and times of a user's history and of a candidate. Out comes the text of a prompt in the
words of one template, safe whatever a title says, and the ids of a tokenizer, with the frame of its chat template.
"""
