"""Drawing: molecules as chemists draw them, on a sheet on which valid and invalid are told apart."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from suffuse_molecules.record import Record, to_mol

__all__ = ["GREEN", "RED", "depict", "sheet"]

GREEN, RED = (34, 139, 94), (200, 62, 52)
WIDTH, HEIGHT, LINE, GAP = 220, 170, 17, 8


def depict(mol: Chem.Mol | None, record: Record | None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a drawing: of the graph without hydrogens where the molecule is sane, else of the atoms as they are."""
    with rdBase.BlockLogs():
        drawn = Chem.RemoveHs(mol) if mol is not None else to_mol(record) if record is not None else Chem.Mol()
        drawn = Chem.Mol(drawn)
        drawn.RemoveAllConformers()
        drawn.UpdatePropertyCache(strict=False)
        rdDepictor.Compute2DCoords(drawn)
        canvas = rdMolDraw2D.MolDraw2DCairo(*size)
        options: Any = canvas.drawOptions()
        options.prepareMolsBeforeDrawing = mol is not None
        options.padding, options.fixedBondLength, options.bondLineWidth = 0.08, 30, 2
        options.minFontSize, options.maxFontSize = 12, 18
        try:
            canvas.DrawMolecule(drawn)
        except (ValueError, RuntimeError):
            canvas = rdMolDraw2D.MolDraw2DCairo(*size)
        canvas.FinishDrawing()
    return Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")


def sheet(
    mols: Sequence[Chem.Mol | None], records: Sequence[Record | None], valid: Sequence[bool],
    captions: Sequence[Sequence[str]], path: Path | None, columns: int | None = None,
) -> Image.Image:  # fmt: skip
    """Return the sheet, and write it under another name first where a path is given.

    Arguments:
        mols: Sane molecules, None for the others.
        records: The atoms as they came.
        valid: Colour of each frame and of its first line: green or red.
        captions: Lines of text below each.
        path: The PNG.
        columns: Drawings per row; by default as fits a screen.
    """
    count = max(len(mols), 1)
    columns = min(columns or max(4, math.ceil(math.sqrt(count * 0.9))), count)
    lines = max((len(text) for text in captions), default=0)
    cell = (WIDTH + GAP, HEIGHT + lines * LINE + 2 * GAP)
    rows = math.ceil(count / columns)
    picture = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw, font = ImageDraw.Draw(picture), _font()
    for place, (mol, record, good, text) in enumerate(zip(mols, records, valid, captions, strict=True)):
        left, top = GAP + place % columns * cell[0], GAP + place // columns * cell[1]
        colour = GREEN if good else RED
        picture.paste(depict(mol, record), (left, top))
        frame = (left, top, left + WIDTH, top + HEIGHT + lines * LINE + GAP)
        draw.rounded_rectangle(frame, radius=6, outline=colour, width=2)
        for number, line in enumerate(text):
            at = (left + GAP, top + HEIGHT + number * LINE)
            draw.text(at, _cut(line, draw, font), fill=colour if number == 0 else (70, 70, 70), font=font)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    return picture


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _cut(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    room = WIDTH - 2 * GAP
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"
