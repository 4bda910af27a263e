"""Checkpoints: Meta's and Hugging Face's files, read slice by slice."""
