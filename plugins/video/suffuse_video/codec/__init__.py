"""Codec of the video package."""
