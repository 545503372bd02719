"""Who writes the rationales that SFT learns from: sentences from a template, or a language model behind an endpoint."""
