"""Command: ``suffuse judge``. RDKit is loaded when there is something to judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from suffuse_molecules.record import Record

__all__ = ["judge"]

HELP = """\
usage: suffuse judge FILE [--reference FILE] [--rules strict|edm|perceived] [--strain N] [--implicit] [--out DIR]

Says which molecules of an SDF (.sdf, .mol, .gz) or SMILES file (.smi, .csv) are right, and why the others are not.
Prints a table and writes report.csv, report.json and overview.png beside the file, or into DIR.

  --reference FILE   a training set: novelty, and distances of bond lengths, angles, sizes, elements and rings to it
  --rules NAME       whose verdict colours the drawings; the report has all of them
  --strain N         work out the strain energy of the first N (default 100)
  --implicit         hydrogens that are missing are completed, not counted as missing
  --column NAME      the column of SMILES in a table (default smiles)

examples
  suffuse judge outputs/molecules/x/samples/final/molecules.sdf
  suffuse judge samples.sdf --reference train.sdf --out judged
"""

OPTIONS = ("--reference", "--rules", "--strain", "--out", "--column")
DRAWN = 100


def judge(argv: list[str]) -> None:
    """Judge the molecules of a file.

    Raises:
        ConfigError: For a word that is none of the options.
        DataError: For a file that is not there or holds no molecule.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return
    path, given = _parsed(argv)

    from suffuse_molecules.judge.report import RULES, beside, judge_all

    if given["--rules"] not in RULES:
        raise ConfigError(f"--rules {given['--rules']}{suggest(given['--rules'], RULES, listing='rules')}")
    found, reasons, flat = _read(path, given["--column"])
    implicit = bool(given["--implicit"]) or flat
    reference = None
    if given["--reference"]:
        theirs, why, flat_too = _read(Path(given["--reference"]), given["--column"])
        reference = judge_all(theirs, implicit or flat_too, None, 0, why, flat_too)
    known = {row.smiles for row in reference.rows if row.valid} if reference else None
    report = judge_all(found, implicit, known, 0 if flat else given["--strain"], reasons, flat)
    if reference is not None:
        beside(report, reference=reference)
    out = Path(given["--out"] or path.parent)
    _write(report, found, given["--rules"], out)
    print(report.table())
    print(f"wrote {out / 'report.csv'}, report.json and overview.png")


def _parsed(argv: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    given: dict[str, Any] = {
        "--reference": "", "--rules": "strict", "--strain": 100, "--out": "", "--column": None, "--implicit": False,
    }  # fmt: skip
    words, paths = list(argv), []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--implicit":
            given[name] = True
        elif name in OPTIONS:
            if not equals and not words:
                raise ConfigError(f"{name} needs a value")
            given[name] = value if equals else words.pop(0)
        elif word.startswith("-"):
            raise ConfigError(f"unknown option {word!r}{suggest(name, [*OPTIONS, '--implicit'], listing='options')}")
        else:
            paths.append(word)
    if len(paths) != 1:
        raise ConfigError(f"give one file to judge, not {len(paths)}")
    try:
        given["--strain"] = int(given["--strain"])
    except ValueError:
        raise ConfigError(f"--strain {given['--strain']} is not a whole number") from None
    return Path(paths[0]).expanduser(), given


def _read(path: Path, column: str | None) -> tuple[list[Record | None], dict[int, str], bool]:
    """Return the molecules of a file as they are, why some could not be read, and whether there are no coordinates."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".sdf", ".sd", ".mol")):
        found, reasons = _sdf(path)
        flat = False
    elif name.endswith((".smi", ".smiles", ".csv", ".tsv", ".txt")):
        found, reasons = _smiles(path, column)
        flat = True
    else:
        raise DataError(f"{path}: neither SDF (.sdf, .mol) nor SMILES (.smi, .csv, .tsv); rename or convert it")
    if not found:
        raise DataError(f"{path}: no molecules in it")
    return found, reasons, flat


def _sdf(path: Path) -> tuple[list[Record | None], dict[int, str]]:
    from suffuse_molecules.readers.sdf import raw_molecules
    from suffuse_molecules.record import from_mol

    found: list[Record | None] = []
    reasons: dict[int, str] = {}
    for number, mol in raw_molecules(path):
        try:
            if mol is None:
                raise DataError("broken record")
            if not mol.GetNumAtoms():
                raise DataError("no atoms")
            found.append(from_mol(_kekulised(mol)))
        except DataError as error:
            reasons[number - 1] = str(error)
            found.append(None)
    return found, reasons


def _kekulised(mol: Any) -> Any:
    """Return an unsanitised molecule with whole bond orders, where its file has aromatic ones."""
    from rdkit import Chem, rdBase

    if not any(bond.GetIsAromatic() or bond.GetBondTypeAsDouble() == 1.5 for bond in mol.GetBonds()):
        return mol
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol, catchErrors=True)
    return mol


def _smiles(path: Path, column: str | None) -> tuple[list[Record | None], dict[int, str]]:
    from rdkit import Chem, rdBase

    from suffuse_molecules.readers.smiles import read_rows
    from suffuse_molecules.record import from_mol

    found: list[Record | None] = []
    reasons: dict[int, str] = {}
    for index, (_, smiles, _) in enumerate(read_rows(path, column)):
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(smiles)
        try:
            if mol is None or not mol.GetNumAtoms():
                raise DataError("unparsable SMILES")
            mol = Chem.AddHs(mol)
            mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()), assignId=True)
            found.append(from_mol(mol))
        except DataError as error:
            reasons[index] = str(error)
            found.append(None)
    return found, reasons


def _write(report: Any, found: Sequence[Record | None], rules: str, out: Path) -> None:
    from suffuse_molecules.drawing import sheet

    of = {"strict": "valid", "edm": "edm_stable", "perceived": "perceived"}[rules]
    valid = [bool(getattr(row, of)) for row in report.rows]
    lines = [
        [row.smiles if good else row.reason or f"not {rules}"] for row, good in zip(report.rows, valid, strict=True)
    ]
    try:
        report.write(out)
        some = slice(DRAWN)
        sheet(report.mols[some], found[some], valid[some], lines[some], out / "overview.png")
    except OSError as error:
        raise DataError(f"cannot write into {out}: {error.strerror}; choose another with --out") from error
    if len(found) > DRAWN:
        print(f"overview.png shows the first {DRAWN} of {len(found)}", file=sys.stderr)
