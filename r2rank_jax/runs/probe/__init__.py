"""`r2rank probe`: what the ranking of a policy rests on."""
