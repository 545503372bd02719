"""From interactions to a prepared folder, one bucket of users at a time.

The input is the two streams of tables of a source. The output is a folder with interactions by user, an item table, frozen
candidate lists for each protocol, and a manifest of hashes. Memory use is bounded by one bucket, and a killed
preparation resumes where it stopped.
"""
