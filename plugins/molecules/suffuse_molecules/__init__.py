"""Molecules in 3D for suffuse: coordinates, elements, bonds and formal charges, diffused together.

Importing the package imports neither torch nor RDKit.
"""

__version__ = "0.1.0"
