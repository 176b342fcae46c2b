"""Metrics: feature extractors, distances between sets of images, and the report."""
