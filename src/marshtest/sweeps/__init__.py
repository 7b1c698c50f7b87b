"""Pieces of work, the store that keeps them, and who does them."""
