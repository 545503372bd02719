"""Who writes the rationales that SFT learns from.

In come a prepared folder and the number of lists to write for. Out comes a file of traces: a rationale for each item of
each list, as sentences from a template, or by a language model behind an endpoint.
"""
