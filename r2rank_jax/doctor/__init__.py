"""`r2rank doctor`: whether a run would start and work on these machines. Each check returns findings."""
