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
from rdkit import Chem, rdBase

from suffuse_molecules.judge.distributions import distances
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
        over: Which molecules a figure is over, by its name.
        implicit: Hydrogens were completed by RDKit before anything was judged.
    """

    rows: list[Judged]
    mols: list[Chem.Mol | None]
    rates: dict[str, Rate]
    figures: dict[str, float]
    columns: dict[str, Report] = field(default_factory=dict)
    flat: bool = False
    over: dict[str, str] = field(default_factory=dict)
    implicit: bool = False

    def summary(self) -> dict[str, Any]:
        """Return plain values."""
        found: dict[str, Any] = {
            "rates": {n: {"value": _round(r.value), **asdict(r)} for n, r in self.rates.items()},
            "figures": {name: _round(value) for name, value in self.figures.items()},
            "over": dict(self.over),
            "hydrogens": "completed by RDKit" if self.implicit else "as they came",
        }
        if self.columns:
            found["reference"] = {name: other.summary() for name, other in self.columns.items()}
        return found

    def table(self) -> str:
        """Return the figures as aligned text, the reference columns beside, and what each is over."""
        sets = {"samples": self, **self.columns}
        left = 2 + max(map(len, [*self.rates, *self.figures]), default=0)
        lines = [f"{'':<{left}}" + "".join(f"{name:>12}" for name in sets) + "  of"]
        for name, rate in self.rates.items():
            values = [s.rates[name].value if name in s.rates else math.nan for s in sets.values()]
            shares = "".join(f"{_percent(value):>12}" for value in values)
            lines.append(f"{name:<{left}}{shares}  {rate.what} ({rate.of:,})")
        for name in self.figures:
            values = [s.figures.get(name, math.nan) for s in sets.values()]
            numbers = "".join(f"{_number(value):>12}" for value in values)
            lines.append(f"{name:<{left}}{numbers}  {self.over.get(name, '')}".rstrip())
        if self.implicit:
            lines.append("RDKit completed the hydrogens before anything was judged.")
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
    progress: Callable[[int], None] | None = None,
) -> Report:  # fmt: skip
    """Return the report of molecules.

    Arguments:
        records: What was made or read; None for what could not be read.
        implicit: Records are of heavy atoms, whose hydrogens RDKit completes first.
        known: SMILES of the training set, or a function that says whether one is in it; None when there is none.
        strained: Of the first so many the strain energy is worked out.
        reasons: Why records are None, by index.
        flat: There are no coordinates: only graphs are judged.
        progress: Called with the number of molecules done.
    """
    is_known = known if callable(known) or known is None else set(known).__contains__
    rows: list[Judged] = []
    mols: list[Chem.Mol | None] = []
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        if progress is not None:
            progress(index + 1)
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
    report = _summed(rows, mols, flat, is_known, min(strained, len(rows)))
    report.implicit = implicit
    return report


def _judged(index: int, record: Record, verdict: Verdict, strained: bool, flat: bool) -> tuple[Judged, Chem.Mol | None]:
    mol = verdict.mol
    row = Judged(index, "", verdict.valid, verdict.reason, verdict.fragments, verdict.radicals, atoms=len(record))
    if mol is not None:
        with rdBase.BlockLogs():
            row.smiles = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
        row.elements = " ".join(sorted({atom.GetSymbol() for atom in mol.GetAtoms()}))
        row.atoms = mol.GetNumAtoms()
    if flat:
        return row, mol
    if mol is None and not np.isfinite(record.pos).all():
        row.edm_atoms = 0.0
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


def _summed(
    rows: list[Judged], mols: list[Chem.Mol | None], flat: bool, known: Callable[[str], bool] | None, strained: int
) -> Report:
    total = len(rows)
    valid = [row for row in rows if row.valid]
    distinct = {row.smiles for row in valid}
    rates = {
        "valid": Rate(len(valid), total, "all asked for"),
        "unique": Rate(len(distinct), len(valid), "valid"),
        "valid_and_unique": Rate(len(distinct), total, "all asked for"),
    }
    if known is not None:
        fresh = {row.smiles for row in valid if row.in_train is False}
        rates["novel"] = Rate(len(fresh), len(distinct), "valid and unique")
    sizes = [row.atoms for row in rows if row.atoms]
    figures = {"atoms_mean": float(np.mean(sizes)) if sizes else math.nan}
    over = {"atoms_mean": "all that have atoms"}
    if not flat:
        rates["plausible_geometry"] = Rate(sum(row.plausible for row in rows), total, "all asked for")
        rates["perceived"] = Rate(sum(row.perceived for row in rows), total, "all asked for")
        rates |= _edm_rates(rows, known)
        for name in ("worst_bond", "worst_angle"):
            figures[f"{name}_median"] = _median([getattr(row, name) for row in valid])
            over[f"{name}_median"] = "valid"
        if strained:
            found = [row.strain for row in rows[:strained]]
            there = sum(not math.isnan(value) for value in found)
            rates["strain_known"] = Rate(there, strained, "first asked for")
            figures["strain_median"] = _median(found)
            over["strain_median"] = f"the {there} of strain_known, kcal/mol per heavy atom"
    return Report(rows, mols, rates, figures, flat=flat, over=over)


def _edm_rates(rows: Sequence[Judged], known: Callable[[str], bool] | None) -> dict[str, Rate]:
    """Return the rates of EDM's rule, over what its paper takes them over."""
    atoms = sum(row.atoms for row in rows)
    stable = round(sum(row.edm_atoms * row.atoms for row in rows if not math.isnan(row.edm_atoms)))
    named = [row.edm_smiles for row in rows if row.edm_smiles]
    distinct = set(named)
    rates = {
        "edm_atom_stable": Rate(stable, atoms, "atoms"),
        "edm_mol_stable": Rate(sum(row.edm_stable for row in rows), len(rows), "all asked for"),
        "edm_valid": Rate(len(named), len(rows), "all asked for"),
        "edm_unique": Rate(len(distinct), len(named), "edm_valid"),
    }
    if known is not None:
        rates["edm_novel"] = Rate(sum(not known(smiles) for smiles in distinct), len(distinct), "edm_unique")
    return rates


def beside(report: Report, **references: Report) -> Report:
    """Return the report with the figures of other sets beside, and the distances of distributions to each."""
    report.columns = dict(references)
    mine = _sound(report)
    for name, other in references.items():
        for what, (value, over) in distances(mine, _sound(other), report.flat or other.flat).items():
            report.figures[f"{what}_to_{name}"] = value
            report.over[f"{what}_to_{name}"] = over
    return report


def _sound(report: Report) -> list[Chem.Mol]:
    return [mol for mol, row in zip(report.mols, report.rows, strict=True) if mol is not None and row.valid]


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
