"""Networks of shapes."""

from suffuse_shapes.nn.set import SetTransformer
from suffuse_shapes.nn.surface import SurfaceNet

__all__ = ["SetTransformer", "SurfaceNet"]
