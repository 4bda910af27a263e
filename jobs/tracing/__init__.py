"""The traced repetition of a case, and flame graphs of it."""
