"""Doors to language models: questions about texts in, losses out."""
