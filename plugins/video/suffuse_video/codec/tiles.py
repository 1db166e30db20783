"""Tiles: see `suffuse.tiles`."""

from suffuse.tiles import Tiled, tile_in

__all__ = ["Tiled", "tile_in"]
