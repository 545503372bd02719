"""From interactions to a prepared folder, one bucket of users at a time.

In come the two streams of tables of a source. Out comes a folder with interactions by user, an item table, frozen
candidate lists for each protocol, and a manifest of hashes. Memory use is bounded by one bucket, and a killed
preparation resumes where it stopped.
"""
