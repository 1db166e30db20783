"""Command: ``suffuse judge``. RDKit is loaded when there is something to judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from suffuse_molecules.judge.report import Judged, Report
    from suffuse_molecules.record import Record

__all__ = ["judge"]

HELP = """\
usage: suffuse judge FILE [--reference FILE] [--rules strict|edm|perceived] [--strain N] [--implicit] [--out DIR]

Says which molecules of an SDF (.sdf, .mol, .gz) or SMILES file (.smi, .csv) are right, and why the others are not.
Prints a table and writes report.csv, report.json and overview.png beside the file, or into DIR.

  --reference FILE   a training set: novelty, its own figures beside, and distances of bond lengths, angles, torsions,
                     sizes, elements and rings to it
  --rules NAME       whose verdict colours the drawings (default strict); the report has all of them
  --strain N         work out the strain energy of the first N (default 100)
  --implicit         hydrogens that are missing are completed, not counted as missing
  --column NAME      the column of SMILES in a table (default smiles)
  --out DIR          where the files go (default beside FILE)

rules
  strict             whole valences, no radicals, one fragment, nothing forgiven
  edm                all atoms stable by the table of distances of Hoogeboom et al. 2022, as papers count
  perceived          RDKit finds the claimed bonds from the coordinates alone

SMILES and files of 2D drawings have no coordinates: of them only graphs are judged.

examples
  suffuse judge outputs/molecules/x/samples/final/molecules.sdf
  suffuse judge samples.sdf.gz --reference train.sdf --out judged
  suffuse judge heavy_atoms.sdf --implicit
"""

OPTIONS = ("--reference", "--rules", "--strain", "--out", "--column")
DRAWN = 100
"""Most drawings."""
BESIDE = 2000
"""Most molecules of the reference that are judged; all of them count as known."""
MANY = 1000
"""Molecules above which progress is shown."""


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

    from suffuse_molecules.judge.files import read
    from suffuse_molecules.judge.report import RULES, beside, judge_all

    if given["--rules"] not in RULES:
        raise ConfigError(f"--rules {given['--rules']}{suggest(given['--rules'], RULES, listing='rules')}")
    entries = read(path, given["--column"])
    flat = entries.flat
    if flat and given["--rules"] != "strict":
        raise ConfigError(f"--rules {given['--rules']} needs 3D coordinates, and {path} has none; use --rules strict")
    # SMILES come with the hydrogens they imply; what they leave out by brackets is a radical.
    implicit, strained = bool(given["--implicit"]) and not entries.whole, 0 if flat else given["--strain"]
    known, reference = None, None
    if given["--reference"]:
        known, reference = _reference(Path(given["--reference"]).expanduser(), given, flat)
    found = entries.records
    report = judge_all(found, implicit, known, strained, entries.reasons, flat, _shown(len(found)))
    if reference is not None:
        beside(report, reference=reference)
    out = Path(given["--out"]).expanduser() if given["--out"] else path.parent
    _write(report, found, given["--rules"], out, path.name)
    print(report.table())
    if flat:
        print(f"{path.name} has no 3D coordinates: only graphs were judged")
    _explain(report, found, implicit)
    print(f"wrote {out / 'report.csv'}, report.json and overview.png")


def _reference(path: Path, given: dict[str, Any], flat: bool) -> tuple[set[str], Report]:
    """Return the SMILES of the reference's valid molecules, and the report of some of it, spread evenly."""
    from suffuse_molecules.judge.files import read
    from suffuse_molecules.judge.report import judge_all

    entries = read(path, given["--column"])
    found, flat = entries.records, flat or entries.flat
    implicit = bool(given["--implicit"]) and not entries.whole
    chosen = sorted({i * len(found) // BESIDE for i in range(BESIDE)}) if len(found) > BESIDE else range(len(found))
    why = {place: entries.reasons[index] for place, index in enumerate(chosen) if index in entries.reasons}
    strained = 0 if flat else given["--strain"]
    report = judge_all([found[i] for i in chosen], implicit, None, strained, why, flat)
    known = {row.smiles for row in report.rows if row.valid}
    for index in set(range(len(found))).difference(chosen):
        known.add(_known(found[index], implicit))
    return known - {""}, report


def _known(record: Record | None, implicit: bool) -> str:
    """Return the SMILES of a valid molecule as the report writes it, or nothing."""
    from rdkit import Chem

    from suffuse_molecules.judge.strict import strict

    verdict = strict(record, implicit) if record is not None else None
    if verdict is None or not verdict.valid:
        return ""
    return str(Chem.MolToSmiles(Chem.RemoveHs(verdict.mol), isomericSmiles=False))


def _shown(count: int) -> Callable[[int], None] | None:
    """Return what shows progress, where there is enough to wait for."""
    if count <= MANY:
        return None
    from suffuse.training.progress import Progress

    return Progress(count, unit="molecules", word="molecule").update


def _explain(report: Report, found: Sequence[Record | None], implicit: bool) -> None:
    """Print the commonest reasons, and what may be meant where hydrogens are missing everywhere."""
    reasons = Counter(_kind(row.reason) for row in report.rows if not row.valid)
    if reasons:
        print("not valid: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5)))
    there = [record for record in found if record is not None]
    bare = sum(not (record.z == 1).any() for record in there)
    if not implicit and bare > len(there) / 2 and report.rates["valid"].value < 0.5:
        print(f"{bare:,} of {len(there):,} molecules have no hydrogen atoms; --implicit completes them before judging")


def _kind(reason: str) -> str:
    """Return a reason less the numbers of atoms, so that equal ones can be counted."""
    words = re.sub(r"^\d+ (fragment|unpaired electron)s?$", r"\1s", reason)
    return re.sub(r"^((?:valence \d+|no known valence) of [A-Z*][a-z]?)\d+", r"\1", words).replace(
        "fragments", "several fragments"
    )


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
    if given["--strain"] < 0:
        raise ConfigError(f"--strain {given['--strain']} is negative; 0 leaves it out")
    return Path(paths[0]).expanduser(), given


def _write(report: Report, found: Sequence[Record | None], rules: str, out: Path, name: str) -> None:
    from suffuse_molecules.drawing import sheet

    of = {"strict": "valid", "edm": "edm_stable", "perceived": "perceived"}[rules]
    valid = [bool(getattr(row, of)) for row in report.rows]
    some = slice(DRAWN)
    lines = [_lines(row, good, rules) for row, good in zip(report.rows[some], valid[some], strict=True)]
    title = f"{name}: {sum(valid):,} of {len(valid):,} valid by the rule {rules}"
    if len(valid) > DRAWN:
        title += f"; the first {DRAWN}"
    try:
        report.write(out)
        sheet(report.mols[some], found[some], valid[some], lines, out / "overview.png", title=title)
    except OSError as error:
        raise DataError(f"cannot write into {out}: {error.strerror}; choose another with --out") from error


def _lines(row: Judged, good: bool, rules: str) -> list[str]:
    """Return what is said below a drawing: the SMILES or what is wrong, then what else is known."""
    if not good:
        why = f"{round(row.edm_atoms * row.atoms)} of {row.atoms} atoms stable" if rules == "edm" else row.reason
        return [why or "the distances say other bonds", row.smiles if row.valid else ""]
    if row.duplicate_of is not None:
        return [row.smiles, f"the same as {row.duplicate_of}"]
    if row.worst_bond == row.worst_bond and not row.plausible:
        return [row.smiles, "implausible geometry"]
    return [row.smiles, f"strain {abs(row.strain):.1f} kcal/mol/atom" if row.strain == row.strain else ""]
