"""Plugin: describes the shape modality to suffuse without importing torch or trimesh."""

from pathlib import Path

from suffuse import Command, Modality, hookimpl

__all__ = ["suffuse_commands", "suffuse_modalities"]


@hookimpl
def suffuse_modalities() -> list[Modality]:
    """Return the one modality of this package."""
    return [Modality("shapes", "3D shapes: coloured point clouds and meshes", conf=Path(__file__).parent / "conf")]


@hookimpl
def suffuse_commands() -> list[Command]:
    """Return ``suffuse mesh``."""
    return [Command("mesh", "turn clouds into watertight meshes", "suffuse_shapes.command:mesh")]
