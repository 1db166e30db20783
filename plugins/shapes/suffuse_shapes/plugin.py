"""Entry point: describes the package without importing torch."""

from pathlib import Path

from suffuse import Modality, hookimpl


@hookimpl
def suffuse_modalities() -> list[Modality]:
    return [Modality("shapes", "coloured point clouds and meshes", conf=Path(__file__).parent / "conf")]
