"""Plugin: describes the molecule modality to suffuse without importing torch or RDKit."""

from pathlib import Path

from suffuse import Command, Modality, hookimpl

__all__ = ["suffuse_commands", "suffuse_modalities"]


@hookimpl
def suffuse_modalities() -> list[Modality]:
    """Return the one modality of this package."""
    conf = Path(__file__).parent / "conf"
    return [Modality("molecules", "3D molecules: coordinates, elements, bonds and charges", conf=conf)]


@hookimpl
def suffuse_commands() -> list[Command]:
    """Return ``suffuse judge``."""
    return [Command("judge", "say which molecules of a file are right, and why not", "suffuse_molecules.command:judge")]
