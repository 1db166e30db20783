"""Drawings: what is on the sheet, by its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from suffuse_molecules.drawing import GREEN, HEIGHT, RED, WIDTH, depict, sheet
from suffuse_molecules.judge.report import judge_all
from suffuse_molecules.record import Record, heavy

MARK = (250, 204, 196)


def count(picture: Image.Image, colour, near: int = 2) -> int:
    """Pixels of a colour."""
    pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    return int((np.abs(pixels - colour).max(1) <= near).sum())


def first(record: Record) -> tuple:
    """The sane molecule of a record, if any, and the record."""
    return judge_all([record]).mols[0], record


def radical(record: Record) -> Record:
    """The record without its last atom, a hydrogen."""
    assert record.z[-1] == 1
    last = len(record) - 1
    bonds = record.bonds[(record.bonds[:, :2] < last).all(1)]
    return Record(record.pos[:last], record.z[:last], record.charge[:last], bonds)


def overfull(record: Record) -> Record:
    """The record with a triple bond for its first one."""
    bonds = record.bonds.copy()
    bonds[0, 2] = 3
    return replace(record, bonds=bonds)


def test_the_atoms_at_fault_are_marked(made):
    fine = made("CC(=O)C")
    assert count(depict(*first(fine)), MARK) == 0
    assert count(depict(*first(radical(fine))), MARK) > 100  # an unpaired electron
    assert count(depict(*first(overfull(fine))), MARK) > 100  # five bonds


def test_frames_tell_right_from_wrong(made, tmp_path):
    records = [made("CCO"), radical(made("CCO")), made("CCN")]
    report = judge_all(records)
    valid = [row.valid for row in report.rows]
    picture = sheet(report.mols, records, valid, [["a"], ["b"], ["c"]], tmp_path / "o.png", columns=3)
    cells = [picture.crop((8 + i * (WIDTH + 8), 0, 8 + i * (WIDTH + 8) + WIDTH + 1, picture.height)) for i in range(3)]
    ring = 2 * (WIDTH + HEIGHT)
    for cell, good in zip(cells, (True, False, True), strict=True):
        assert (count(cell, GREEN, 0) > ring) == good and (count(cell, RED, 0) > ring) == (not good)
    assert Image.open(tmp_path / "o.png").size == picture.size and not list(tmp_path.glob(".*"))


def test_nothing_leaves_its_cell(made):
    """However long a caption is, the gap beside a cell stays white."""
    record = made("CCO")
    report = judge_all([record] * 2)
    picture = sheet(
        report.mols, [record] * 2, [True] * 2, [["W" * 400, "x" * 400]] * 2, None, columns=2, title="t" * 900
    )
    pixels = np.asarray(picture)
    assert (pixels[40:, 8 + WIDTH + 2 : 8 + WIDTH + 7] == 255).all() and (pixels[:, -6:] == 255).all()


def test_isomers_are_drawn_apart_and_conformers_are_not(made):
    def drawn(record):
        return np.asarray(depict(*first(record))).astype(int)

    alanine = made("C[C@H](N)C(=O)O")
    mirror = replace(alanine, pos=alanine.pos * np.float32([1, 1, -1]))
    turned = replace(alanine, pos=alanine.pos[:, [1, 2, 0]] + np.float32(3))
    assert np.abs(drawn(alanine) - drawn(mirror)).sum() > 1000
    assert np.array_equal(drawn(alanine), drawn(turned))
    assert np.abs(drawn(made("C/C=C/C")) - drawn(made("C/C=C\\C"))).sum() > 1000


def test_hydrogens_are_implied_but_at_the_fault(made):
    """A skeleton has the same ink whether its hydrogens are atoms or not."""
    explicit, implicit = made("CC(C)C"), heavy(made("CC(C)C"))
    mols = judge_all([explicit]).mols + judge_all([implicit], implicit=True).mols
    assert np.array_equal(np.asarray(depict(mols[0], explicit)), np.asarray(depict(mols[1], implicit)))


@pytest.mark.parametrize("atoms", [None, 0, 400])
def test_what_cannot_be_drawn_is_a_note(atoms):
    """Not read, without atoms, and too many of them."""
    record = None
    if atoms is not None:
        zeros = np.zeros(atoms)
        record = Record(np.zeros((atoms, 3), np.float32), zeros.astype(np.uint8), zeros.astype(np.int8),
                        np.zeros((0, 3), np.int16))  # fmt: skip
    picture = depict(None, record)
    ink = (np.asarray(picture) < 255).any(2)
    assert picture.size == (WIDTH, HEIGHT) and 50 < ink.sum() < 2000
    assert not ink[:60].any() and not ink[110:].any()


def test_a_sheet_of_nothing_and_a_full_one(made):
    assert sheet([], [], [], [], None).size[0] > 0
    record = made("C")
    mol = judge_all([record]).mols[0]
    picture = sheet([mol] * 30, [record] * 30, [True] * 30, [["C"]] * 30, None)
    columns = (picture.width - 8) // (WIDTH + 8)
    assert 5 <= columns <= 7 and picture.height > 4 * HEIGHT
