"""Pretrained language models: fetched, and read from and written to Hugging Face's layout."""
