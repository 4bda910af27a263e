"""Clusters: one site's facts, as data, and which site this is."""
