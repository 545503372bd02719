"""Writing rationales with the current policy."""
