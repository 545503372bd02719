"""The language model, as pure functions of a parameter pytree."""
