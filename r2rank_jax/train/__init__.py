"""Losses, the train state, and the training steps of SFT and RL."""
