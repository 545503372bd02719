"""What touches the disk or the wire, whatever the bytes mean.

In come paths, addresses and archives; out come whole files with checked hashes, or an error and nothing half-written.
"""
