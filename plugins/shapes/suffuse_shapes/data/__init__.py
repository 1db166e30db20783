"""Data of shapes: the embedded set of solids, and files of meshes and clouds."""

from suffuse_shapes.data.solids import SolidData

__all__ = ["SolidData"]
