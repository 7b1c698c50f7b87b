"""What training asks of a model, how it goes, and what it may cost."""
