"""Download public data sets by name.

In comes a name such as `ml-100k` or `amazon-2023/Gift_Cards`. Out comes a folder with the publisher's files and their
verified checksums.
"""
