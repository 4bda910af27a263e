"""Grids: a YAML file of what to vary, checked and unfolded into cases."""
