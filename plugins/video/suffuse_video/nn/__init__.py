"""Nn of the video package."""
