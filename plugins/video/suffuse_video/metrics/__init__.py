"""Metrics of the video package."""
