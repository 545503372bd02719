"""The language model: pure functions of a parameter pytree."""
