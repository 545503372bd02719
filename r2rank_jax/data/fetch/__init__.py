"""Public data sets, by name.

In comes a name, as `ml-100k` or `amazon-2023/Gift_Cards`. Out comes a folder with its publisher's files and verified
checksums.
"""
