"""Every check that a prepared folder must pass, on any such folder, bucket by bucket."""
