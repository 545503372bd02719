"""Pretrained language models: fetch them, and read and write them in Hugging Face's layout."""
