"""Data of the video package."""
