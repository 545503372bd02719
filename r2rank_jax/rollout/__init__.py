"""Generate rationales with the current policy, and score lists with them."""
