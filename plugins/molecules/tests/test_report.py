"""The report: what every figure is over, what cannot be judged, and the files of molecules."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from suffuse_molecules.judge.distributions import compare, covered, distances, measured
from suffuse_molecules.judge.report import beside, judge_all
from suffuse_molecules.judge.strict import strict
from suffuse_molecules.record import Record, heavy
from suffuse_molecules.sdf import block, write_sdf


def less(record: Record, *atoms: int) -> Record:
    """The record without some atoms."""
    keep = ~np.isin(np.arange(len(record)), atoms)
    place = np.cumsum(keep) - 1
    inside = record.bonds[keep[record.bonds[:, 0]] & keep[record.bonds[:, 1]]]
    bonds = np.column_stack([place[inside[:, 0]], place[inside[:, 1]], inside[:, 2]]).astype(np.int16)
    return replace(record, pos=record.pos[keep], z=record.z[keep], charge=record.charge[keep], bonds=bonds)


def moved(record: Record, spread: float, seed: int = 0) -> Record:
    """The record with noise on its coordinates, in Angstrom."""
    noise = np.random.default_rng(seed).normal(0, spread, record.pos.shape)
    return replace(record, pos=record.pos + noise.astype(np.float32))


# What figures are over.


def test_edm_rates_have_the_denominators_of_its_paper(made):
    """Methane, a methyl radical and a lone C-H: the rule calls all three valid, and only methane stable."""
    methane = made("C")
    records = [methane, less(methane, 4), less(methane, 2, 3, 4), None]
    report = judge_all(records, known=["C"])
    counts = {name: (rate.count, rate.of) for name, rate in report.rates.items()}
    assert counts["edm_atom_stable"] == (5 + 3 + 1, 5 + 4 + 2)
    assert counts["edm_mol_stable"] == (1, 4) and counts["edm_valid"] == (3, 4)
    smiles = {row.edm_smiles for row in report.rows if row.edm_smiles}
    assert counts["edm_unique"] == (len(smiles), 3) and counts["edm_novel"] == (len(smiles - {"C"}), len(smiles))
    assert counts["valid"] == (1, 4)  # the strict rule forgives neither


def test_medians_do_not_hide_what_was_not_judged(made):
    """Strain of four is asked for; two have one. The rates keep the four, the median says that it is of two."""
    ethanol = made("CCO")
    broken = less(ethanol, len(ethanol) - 1)
    report = judge_all([ethanol, broken, moved(ethanol, 0.25), None, ethanol], strained=4)
    assert (report.rates["strain_known"].count, report.rates["strain_known"].of) == (2, 4)
    known = [report.rows[0].strain, report.rows[2].strain]
    assert report.figures["strain_median"] == pytest.approx(np.median(known)) and known[1] > 0.5 > known[0]
    assert report.over["strain_median"].startswith("the 2 of strain_known")
    assert math.isnan(report.rows[4].strain) and report.over["worst_bond_median"] == "valid"
    bonds = [row.worst_bond for row in report.rows if row.valid]
    assert not report.rows[2].plausible and report.rows[2].valid
    assert len(bonds) == 3 and report.figures["worst_bond_median"] == pytest.approx(np.median(bonds))


def test_every_figure_of_the_table_says_what_it_is_over(made):
    samples = judge_all([made("CCO")] * 10, known=["CC"], strained=2)
    table = beside(samples, train=judge_all([made("CCN")] * 10, strained=1), held_out=judge_all([made("CCO")])).table()
    head, *lines = table.splitlines()
    assert head.split() == ["samples", "train", "held_out", "of"]
    assert len(lines) == len(samples.rates) + len(samples.figures)
    over = head.index("  of")
    assert all(line[over : over + 2] == "  " and line[over:].strip() for line in lines), table
    assert set(samples.over) == set(samples.figures)


def test_the_report_says_that_hydrogens_were_completed(made, tmp_path):
    record = made("CCO")
    report = judge_all([heavy(record)], implicit=True)
    assert "RDKit completed the hydrogens" in report.table() and report.rows[0].valid
    report.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["hydrogens"] == "completed by RDKit"
    assert "completed" not in judge_all([record]).table()
    assert judge_all([heavy(record)]).rows[0].reason == "6 unpaired electrons"  # 3, 2 and 1


def test_json_has_no_value_that_others_cannot_read(tmp_path):
    judge_all([None], known=[], strained=1).write(tmp_path)

    def refuse(word):
        raise AssertionError(word)

    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse)["rates"]["unique"]["value"] is None


def test_progress_counts_the_molecules(made):
    seen: list[int] = []
    judge_all([made("C"), None, made("C")], progress=seen.append)
    assert seen == [1, 2, 3]


# What cannot be judged.


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30])
def test_coordinates_that_are_no_numbers(made, value):
    record = made("CO")
    record.pos[1, 2] = value
    report = judge_all([record, made("CO")], strained=2)
    assert [row.valid for row in report.rows] == [False, True]
    assert report.rows[0].reason == "coordinates that are not finite"
    assert report.rates["edm_mol_stable"].count == 1 and report.rates["perceived"].count == 1


def test_atoms_upon_each_other_are_implausible_and_break_nothing(made):
    record = made("CCCO")
    collapsed = replace(record, pos=np.zeros_like(record.pos))
    report = beside(judge_all([collapsed] * 3, strained=3), data=judge_all([record] * 3))
    assert report.rates["valid"].count == 3 and report.rates["plausible_geometry"].count == 0
    assert report.figures["w1_bond_to_data"] == pytest.approx(1.16, abs=0.1)  # the data's mean length


@pytest.mark.parametrize(
    ("smiles", "change", "reason"),
    [
        ("C=C", {"bonds": 3}, "valence 5 of C0"),
        ("CO", {"charge": 1}, "valence 4 of C0 with charge +1"),
    ],
)
def test_reasons_name_the_atom(made, smiles, change, reason):
    record = made(smiles)
    bonds, charge = record.bonds.copy(), record.charge.copy()
    bonds[0, 2] = change.get("bonds", bonds[0, 2])
    charge[0] = change.get("charge", 0)
    assert strict(replace(record, bonds=bonds, charge=charge)).reason == reason


# Distances of distributions.


def test_lengths_angles_and_torsions_are_those_of_rdkit(made):
    mol = strict(moved(made("CCOC=C"), 0.1)).mol
    pos, found = mol.GetConformer(), measured([mol])
    lengths = [rdMolTransforms.GetBondLength(pos, b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
    assert sorted(v for values in found["bond"].values() for v in values) == pytest.approx(sorted(lengths))
    (angle,) = found["angle"]["C-OSP2-C"]  # RDKit's hybridisation of an enol ether
    assert angle == pytest.approx(rdMolTransforms.GetAngleDeg(pos, 1, 2, 3))
    torsions = [rdMolTransforms.GetDihedralDeg(pos, 0, 1, 2, 3), rdMolTransforms.GetDihedralDeg(pos, 1, 2, 3, 4)]
    assert sorted(found["torsion"]["C-torsion-O"]) == pytest.approx(sorted(map(abs, torsions)))


def test_types_that_samples_lack_are_counted():
    data = {"bond": {"C-SINGLE-C": [1.5] * 30, "C-DOUBLE-O": [1.2] * 10, "N-SINGLE-N": [1.4] * 3}}
    samples = {"bond": {"C-SINGLE-C": [1.6]}}
    assert covered(samples, data)["bond"] == 0.75  # the rare type is in neither count
    assert compare(samples, data)["bond"] == pytest.approx(0.1)
    assert math.isnan(compare({"bond": {}}, data)["bond"]) and covered({"bond": {}}, data)["bond"] == 0


def test_distances_of_sizes_elements_and_rings(made):
    samples = [strict(made(s)).mol for s in ("CCO", "C1CC1")]
    data = [strict(made(s)).mol for s in ("CCO", "CCCC")]
    found = {name: value for name, (value, _) in distances(samples, data, flat=True).items()}
    assert list(found) == ["tv_size", "tv_elements", "tv_rings"]
    assert found["tv_size"] == 0.5 and found["tv_rings"] == 0.5
    # C 5/18, H 12/18, O 1/18 against C 6/23, H 16/23, O 1/23.
    assert found["tv_elements"] == pytest.approx(16 / 23 - 12 / 18)
    assert distances([], data) == {} == distances(samples, [])


# Files of molecules.


def test_what_is_no_molecule_can_be_read_again(made, tmp_path):
    """Too many bonds, too few hydrogens, and coordinates that fit no column."""
    ethene = made("C=C")
    bonds = ethene.bonds.copy()
    bonds[0, 2] = 3
    far = replace(ethene, pos=np.where(np.arange(6)[:, None] == 0, np.inf, ethene.pos).astype(np.float32))
    records = [replace(ethene, bonds=bonds), less(ethene, 5), far]
    report = judge_all(records)
    tags = [{"index": i, "valid": row.valid, "reason": row.reason} for i, row in enumerate(report.rows)]
    path = write_sdf(tmp_path / "a.sdf", report.mols, records, tags)
    again = list(Chem.SDMolSupplier(str(path), sanitize=False, removeHs=False))
    assert [mol.GetNumAtoms() for mol in again] == [6, 5, 6]
    assert again[0].GetBondBetweenAtoms(0, 1).GetBondTypeAsDouble() == 3
    assert [mol.GetProp("valid") for mol in again] == ["False"] * 3
    assert again[0].GetProp("reason") == "valence 5 of C0"
    assert np.abs(again[0].GetConformer().GetPositions() - ethene.pos).max() < 1e-4
    assert again[2].GetConformer().GetPositions()[0].tolist() == [9999.0] * 3
    assert not list(tmp_path.glob(".*"))


def test_stereo_comes_from_the_coordinates(made):
    record = made("C[C@H](N)C(=O)O")
    mirror = replace(record, pos=record.pos * np.float32([1, 1, -1]))
    report = judge_all([record, mirror])
    texts = [block(mol, one, {}) for mol, one in zip(report.mols, (record, mirror), strict=True)]
    isomers = []
    for text in texts:
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text)
        isomers.append(supplier[0].GetProp("isomeric_smiles"))
    assert isomers == ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]
    assert report.rows[1].duplicate_of == 0  # the report counts graphs


def test_tags_without_a_value_are_left_out(made):
    record = made("C")
    text = block(judge_all([record]).mols[0], record, {"index": 3, "strain": math.nan, "seed": None, "x": 0.25})
    assert "strain" not in text and "seed" not in text and ">  <x>" in text.replace("> <", ">  <")
    assert text.startswith("3\n") and "0.25\n" in text and text.endswith("$$$$\n")
