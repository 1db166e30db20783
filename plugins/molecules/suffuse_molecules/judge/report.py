"""Report: one row per molecule, and a summary in which every rate has its denominator."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from suffuse_molecules.judge.distributions import compare, measured, total_variation
from suffuse_molecules.judge.edm import edm
from suffuse_molecules.judge.geometry import geometry, strain
from suffuse_molecules.judge.perceived import perceived
from suffuse_molecules.judge.strict import Verdict, strict
from suffuse_molecules.record import Record, from_mol

__all__ = ["RULES", "Judged", "Rate", "Report", "judge_all"]

RULES = ("strict", "edm", "perceived")


@dataclass(frozen=True)
class Rate:
    """A share, with what it is a share of."""

    count: int
    of: int
    what: str

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.count / self.of if self.of else math.nan


@dataclass
class Judged:
    """What is said of one molecule; fields that cannot be known are NaN or None."""

    index: int
    smiles: str
    valid: bool
    reason: str
    fragments: int
    radicals: int
    worst_bond: float = math.nan
    worst_angle: float = math.nan
    clash: float = math.nan
    plausible: bool = False
    strain: float = math.nan
    duplicate_of: int | None = None
    in_train: bool | None = None
    edm_atoms: float = math.nan
    edm_stable: bool = False
    edm_smiles: str = ""
    perceived: bool = False
    atoms: int = 0
    elements: str = ""


@dataclass
class Report:
    """Rows and figures.

    Arguments:
        rows: One per molecule.
        mols: Sanitised molecules with hydrogens, None where there is none.
        rates: Shares by name.
        figures: Other numbers by name.
        columns: Rates and figures of other sets, to be shown beside: the data's own.
        flat: There are no coordinates.
    """

    rows: list[Judged]
    mols: list[Chem.Mol | None]
    rates: dict[str, Rate]
    figures: dict[str, float]
    columns: dict[str, Report] = field(default_factory=dict)
    flat: bool = False

    def summary(self) -> dict[str, Any]:
        """Return plain values."""
        found: dict[str, Any] = {
            "rates": {n: {"value": _round(r.value), **asdict(r)} for n, r in self.rates.items()},
            "figures": {name: _round(value) for name, value in self.figures.items()},
        }
        if self.columns:
            found["reference"] = {name: other.summary() for name, other in self.columns.items()}
        return found

    def table(self) -> str:
        """Return the figures as aligned text, the reference columns beside."""
        names = ["samples", *self.columns]
        sets = [self, *self.columns.values()]
        lines = [f"{'':<22}" + "".join(f"{name:>12}" for name in names) + "  of"]
        for name, rate in self.rates.items():
            values = [s.rates[name].value if name in s.rates else math.nan for s in sets]
            lines.append(f"{name:<22}" + "".join(f"{_percent(v):>12}" for v in values) + f"  {rate.what}")
        for name in self.figures:
            values = [s.figures.get(name, math.nan) for s in sets]
            lines.append(f"{name:<22}" + "".join(f"{_number(v):>12}" for v in values))
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write ``report.csv`` and ``report.json``, each under another name first."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".report.csv.tmp"
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [name for name in Judged.__dataclass_fields__])
            writer.writeheader()
            for row in self.rows:
                writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
        temporary.replace(folder / "report.csv")
        temporary = folder / ".report.json.tmp"
        temporary.write_text(json.dumps(self.summary(), indent=2) + "\n")
        temporary.replace(folder / "report.json")


def judge_all(
    records: Sequence[Record | None], implicit: bool = False,
    known: Collection[str] | Callable[[str], bool] | None = None,
    strained: int = 0, reasons: Mapping[int, str] | None = None, flat: bool = False,
) -> Report:  # fmt: skip
    """Return the report of molecules.

    Arguments:
        records: What was made or read; None for what could not be read.
        implicit: Records are of heavy atoms, whose hydrogens RDKit completes first.
        known: SMILES of the training set, or a function that says whether one is in it; None when there is none.
        strained: Of the first so many the strain energy is worked out.
        reasons: Why records are None, by index.
        flat: There are no coordinates: only graphs are judged.
    """
    is_known = known if callable(known) or known is None else set(known).__contains__
    rows: list[Judged] = []
    mols: list[Chem.Mol | None] = []
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        if record is None:
            rows.append(Judged(index, "", False, (reasons or {}).get(index, "unreadable"), 0, -1))
            mols.append(None)
            continue
        row, mol = _judged(index, record, strict(record, implicit), index < strained, flat)
        if row.valid:
            row.duplicate_of = first.get(row.smiles)
            first.setdefault(row.smiles, index)
            row.in_train = bool(is_known(row.smiles)) if is_known else None
        rows.append(row)
        mols.append(mol)
    return _summed(rows, mols, flat, is_known is not None, min(strained, len(rows)))


def _judged(index: int, record: Record, verdict: Verdict, strained: bool, flat: bool) -> tuple[Judged, Chem.Mol | None]:
    mol = verdict.mol
    row = Judged(index, "", verdict.valid, verdict.reason, verdict.fragments, verdict.radicals, atoms=len(record))
    if mol is not None:
        row.smiles = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
        row.elements = " ".join(sorted({atom.GetSymbol() for atom in mol.GetAtoms()}))
        row.atoms = mol.GetNumAtoms()
    if flat:
        return row, mol
    table = edm(from_mol(mol) if mol is not None else record)
    row.edm_atoms, row.edm_stable, row.edm_smiles = table.stable_atoms / max(table.atoms, 1), table.stable, table.smiles
    if mol is None or not verdict.valid:
        return row, mol
    bounds = geometry(mol)
    if bounds is not None:
        row.worst_bond, row.worst_angle, row.clash = bounds.worst_bond, bounds.worst_angle, bounds.clash
        row.plausible = bounds.plausible
    row.perceived = perceived(mol)
    if strained:
        row.strain = strain(mol)
    return row, mol


def _summed(rows: list[Judged], mols: list[Chem.Mol | None], flat: bool, known: bool, strained: int) -> Report:
    total = len(rows)
    valid = [row for row in rows if row.valid]
    distinct = {row.smiles for row in valid}
    rates = {
        "valid": Rate(len(valid), total, "all asked for"),
        "unique": Rate(len(distinct), len(valid), "valid"),
        "valid_and_unique": Rate(len(distinct), total, "all asked for"),
    }
    if known:
        fresh = {row.smiles for row in valid if row.in_train is False}
        rates["novel"] = Rate(len(fresh), len(distinct), "valid and unique")
    figures: dict[str, float] = {"atoms_mean": float(np.mean([row.atoms for row in rows])) if rows else math.nan}
    if not flat:
        atoms = sum(row.atoms for row in rows)
        stable = round(sum(row.edm_atoms * row.atoms for row in rows if not math.isnan(row.edm_atoms)))
        named = [row for row in rows if row.edm_smiles]
        rates |= {
            "plausible_geometry": Rate(sum(row.plausible for row in rows), total, "all asked for"),
            "perceived": Rate(sum(row.perceived for row in rows), total, "all asked for"),
            "edm_atom_stable": Rate(int(stable), atoms, "atoms"),
            "edm_mol_stable": Rate(sum(row.edm_stable for row in rows), total, "all asked for"),
            "edm_valid": Rate(len(named), total, "all asked for"),
            "edm_unique": Rate(len({row.edm_smiles for row in named}), len(named), "edm_valid"),
        }
        figures["worst_bond_median"] = _median([row.worst_bond for row in valid])
        figures["worst_angle_median"] = _median([row.worst_angle for row in valid])
        if strained:
            found = [row.strain for row in rows[:strained]]
            rates["strain_known"] = Rate(sum(not math.isnan(value) for value in found), strained, "first asked for")
            figures["strain_median"] = _median(found)
    return Report(rows, mols, rates, figures, flat=flat)


def beside(report: Report, **references: Report) -> Report:
    """Return the report with the figures of other sets beside, and the distances of distributions to each."""
    report.columns = dict(references)
    mine = [mol for mol, row in zip(report.mols, report.rows, strict=True) if mol is not None and row.valid]
    for name, other in references.items():
        theirs = [mol for mol, row in zip(other.mols, other.rows, strict=True) if mol is not None and row.valid]
        if not mine or not theirs:
            continue
        if not report.flat and not other.flat:
            for kind, value in compare(measured(mine), measured(theirs)).items():
                report.figures[f"w1_{kind}_to_{name}"] = value
        for what, of in (("size", _heavy), ("elements", _symbols), ("rings", _rings)):
            report.figures[f"tv_{what}_to_{name}"] = total_variation(of(mine), of(theirs))
    return report


def _heavy(mols: Sequence[Chem.Mol]) -> list[object]:
    return [mol.GetNumHeavyAtoms() for mol in mols]


def _symbols(mols: Sequence[Chem.Mol]) -> list[object]:
    return [atom.GetSymbol() for mol in mols for atom in mol.GetAtoms()]


def _rings(mols: Sequence[Chem.Mol]) -> list[object]:
    return [tuple(sorted(len(ring) for ring in mol.GetRingInfo().AtomRings())) for mol in mols]


def _median(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return float(np.median(there)) if there else math.nan


def _round(value: float) -> float | None:
    return None if math.isnan(value) or math.isinf(value) else round(value, 5)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return round(value, 4) if isinstance(value, float) else value
