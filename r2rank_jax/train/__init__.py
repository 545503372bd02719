"""Losses, the train state and the two training steps."""
