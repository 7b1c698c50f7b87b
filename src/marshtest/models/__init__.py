"""Networks, language models, their layers and their files."""
