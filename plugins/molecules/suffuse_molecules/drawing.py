"""Drawing: molecules as chemists draw them, on a sheet on which valid and invalid are told apart.

A sane molecule is drawn without its hydrogens, with the stereo that its coordinates have. Of one that is not, the atoms
at fault keep their hydrogens and are marked: those with unpaired electrons or too many bonds.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from suffuse_molecules.judge.strict import offenders
from suffuse_molecules.record import Record, to_mol

__all__ = ["GREEN", "RED", "depict", "sheet"]

GREEN, RED = (34, 139, 94), (200, 62, 52)
GREY, LIGHT = (70, 70, 70), (150, 150, 150)
MARK = (0.98, 0.80, 0.77)
WIDTH, HEIGHT, LINE, GAP = 220, 170, 17, 8
MOST = 300
"""Atoms above which a drawing shows nothing and takes long."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def depict(mol: Chem.Mol | None, record: Record | None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a drawing of a sane molecule, or of the atoms and bonds as they came; a note where there are none.

    Arguments:
        mol: Sane, with hydrogens; None where there is none.
        record: The atoms as they came; None for what could not be read.
        size: Width and height in pixels.
    """
    if (mol is None and record is None) or (record is not None and not 0 < len(record) <= MOST):
        return _note("not read" if record is None else "no atoms" if not len(record) else f"{len(record)} atoms", size)
    with rdBase.BlockLogs():
        try:
            wrong = [] if record is None else offenders(record, mol)
            drawn = _sane(mol, wrong) if mol is not None else _bare(record, wrong)
            return _painted(drawn, size, mol is not None)
        except (ValueError, RuntimeError):
            return _note("cannot be drawn", size)


def _sane(mol: Chem.Mol, wrong: Collection[int]) -> Chem.Mol:
    """Return the skeleton, its stereo assigned where there are coordinates."""
    drawn = Chem.Mol(mol)
    if drawn.GetNumConformers() and np.ptp(drawn.GetConformer().GetPositions(), axis=0).any():
        Chem.AssignStereochemistryFrom3D(drawn)
    for i in wrong:
        drawn.GetAtomWithIdx(i).SetBoolProp("wrong", True)
    return Chem.RemoveHs(drawn)


def _bare(record: Record | None, wrong: Collection[int]) -> Chem.Mol:
    """Return what RDKit does not take, less the hydrogens of atoms that are not at fault."""
    assert record is not None
    drawn, matrix, gone = to_mol(record), record.matrix(), []
    for i in wrong:
        drawn.GetAtomWithIdx(i).SetBoolProp("wrong", True)
    for i in np.flatnonzero(record.z == 1).tolist():
        near = np.flatnonzero(matrix[i]).tolist()
        if len(near) == 1 and matrix[i, near[0]] == 1 and record.z[near[0]] > 1 and not {i, near[0]} & set(wrong):
            atom = drawn.GetAtomWithIdx(near[0])
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() + 1)
            gone.append(i)
    for i in reversed(gone):
        drawn.RemoveAtom(i)
    drawn.UpdatePropertyCache(strict=False)
    return drawn.GetMol()


def _painted(drawn: Chem.Mol, size: tuple[int, int], sane: bool) -> Image.Image:
    rdDepictor.Compute2DCoords(drawn)
    canvas = rdMolDraw2D.MolDraw2DCairo(*size)
    options: Any = canvas.drawOptions()
    options.prepareMolsBeforeDrawing = sane
    options.padding, options.fixedBondLength, options.bondLineWidth = 0.08, 30, 2
    options.minFontSize, options.maxFontSize = 12, 18
    options.setHighlightColour(MARK)
    options.highlightBondWidthMultiplier, options.highlightRadius = 12, 0.4
    canvas.DrawMolecule(drawn, highlightAtoms=[a.GetIdx() for a in drawn.GetAtoms() if a.HasProp("wrong")])
    canvas.FinishDrawing()
    return Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")


def _note(text: str, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), _font()
    draw.text(((size[0] - draw.textlength(text, font=font)) / 2, size[1] / 2 - 8), text, fill=LIGHT, font=font)
    return picture


def sheet(
    mols: Sequence[Chem.Mol | None], records: Sequence[Record | None], valid: Sequence[bool],
    captions: Sequence[Sequence[str]], path: Path | None, columns: int | None = None, title: str = "",
) -> Image.Image:  # fmt: skip
    """Return the sheet, and write it under another name first where a path is given.

    Each drawing bears its place, counted from 0 as in the report.

    Arguments:
        mols: Sane molecules, None for the others.
        records: The atoms as they came.
        valid: Colour of each frame and of its first line: green or red.
        captions: Lines of text below each.
        path: The PNG.
        columns: Drawings per row; by default as fits a screen.
        title: A line above all.
    """
    count = max(len(mols), 1)
    columns = min(columns or max(4, math.ceil(math.sqrt(count * 0.9))), count)
    lines = max((len(text) for text in captions), default=0)
    cell = (WIDTH + GAP, HEIGHT + lines * LINE + 2 * GAP)
    head = LINE + GAP if title else 0
    rows = math.ceil(count / columns)
    picture = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP + head), "white")
    draw, font = ImageDraw.Draw(picture), _font()
    draw.text((GAP, GAP), _cut(title, draw, font, picture.width - 2 * GAP), fill=GREY, font=font)
    for place, (mol, record, good, text) in enumerate(zip(mols, records, valid, captions, strict=True)):
        left, top = GAP + place % columns * cell[0], head + GAP + place // columns * cell[1]
        colour = GREEN if good else RED
        picture.paste(depict(mol, record), (left, top))
        frame = (left, top, left + WIDTH, top + HEIGHT + lines * LINE + GAP)
        draw.rounded_rectangle(frame, radius=6, outline=colour, width=2)
        number = str(place)
        at = (left + WIDTH - GAP - draw.textlength(number, font=font), top + GAP // 2)
        draw.text(at, number, fill=LIGHT, font=font)
        for row, line in enumerate(text):
            fill = colour if row == 0 else GREY
            at = (left + GAP, top + HEIGHT + row * LINE)
            draw.text(at, _cut(line, draw, font, WIDTH - 2 * GAP), fill=fill, font=font)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    return picture


def _font() -> Font:
    return ImageFont.load_default(13)


def _cut(text: str, draw: ImageDraw.ImageDraw, font: Font, room: float) -> str:
    """Return the text, cut where it is wider than `room` pixels."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"
