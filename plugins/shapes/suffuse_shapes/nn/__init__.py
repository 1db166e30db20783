"""Networks of shapes."""

from suffuse_shapes.nn.set import SetTransformer

__all__ = ["SetTransformer"]
