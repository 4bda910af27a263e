"""Profiles of a device, and the split of layers that follows from one."""
