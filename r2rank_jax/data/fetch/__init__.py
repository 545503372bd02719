"""Download public data sets by name.

The input is a name such as `ml-100k` or `amazon-2023/Gift_Cards`. The output is a folder with the publisher's files and their
verified checksums.
"""
