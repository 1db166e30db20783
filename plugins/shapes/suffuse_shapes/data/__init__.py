"""Data of shapes: the embedded set of solids, and files of meshes and clouds."""

from suffuse_shapes.data.folder import Folder
from suffuse_shapes.data.solids import SolidData

__all__ = ["Folder", "SolidData"]
