"""Submitting cases: what to do with each, and how to do it so that a crash loses nothing."""
