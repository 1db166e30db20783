"""Collect: records that fit, and a count of those that do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rdkit import Chem
from suffuse.errors import ConfigError, DataError

from suffuse_molecules.record import Record, to_mol
from suffuse_molecules.store import Store, canonical

__all__ = ["Collected", "Limits", "Skip", "collect", "files"]

EXAMPLES = 5
"""Places shown per reason."""

ELEMENTS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I")


@dataclass(frozen=True)
class Skip:
    """An entry that was left out.

    Arguments:
        where: File and place.
        reason: Why, in words that are the same for the same fault.
    """

    where: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a molecule may be.

    Arguments:
        elements: Symbols that are known.
        max_atoms: Most atoms, hydrogens among them; None for any number.

    Raises:
        ConfigError: For something that is no element, or no atoms at all.
    """

    elements: Sequence[str] = ELEMENTS
    max_atoms: int | None = None

    def __post_init__(self) -> None:
        table = Chem.GetPeriodicTable()
        for symbol in self.elements:
            try:
                table.GetAtomicNumber(symbol)
            except RuntimeError:
                raise ConfigError(f"data.elements: {symbol!r} is no element") from None
        if self.max_atoms is not None and self.max_atoms < 1:
            raise ConfigError(f"data.max_atoms={self.max_atoms} must be at least 1")

    def refuses(self, record: Record) -> str | None:
        """Return why a record is left out, or None."""
        table = Chem.GetPeriodicTable()
        known = {table.GetAtomicNumber(symbol) for symbol in self.elements}
        if strange := set(record.z.tolist()) - known:
            return f"element {table.GetElementSymbol(min(strange))} outside data.elements"
        if self.max_atoms is not None and len(record) > self.max_atoms:
            return f"more than {self.max_atoms} atoms"
        if np.abs(record.charge.astype(int)).max(initial=0) > 1:
            return "formal charge beyond -1 or +1"
        if not np.isfinite(record.pos).all():
            return "NaN or infinite coordinates"
        mol = to_mol(record)
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return "not a sane molecule with its hydrogens as they are"
        if len(Chem.GetMolFrags(mol)) > 1:
            return "several fragments"
        if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
            return "radical, or hydrogens missing"
        return None


@dataclass
class Collected:
    """What a file came to.

    Arguments:
        store: The molecules.
        skipped: How many entries were left out for each reason.
        examples: Up to `EXAMPLES` places per reason.
    """

    store: Store
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def summary(self) -> str:
        """Return one line."""
        kept, lost = len(self.store), sum(self.skipped.values())
        reasons = "; ".join(
            f"{count} {reason} ({self.examples[reason][0]})" for reason, count in self.skipped.most_common(4)
        )
        return f"{kept:,} molecules read, {lost:,} left out" + (f": {reasons}" if lost else "")


def collect(
    found: Iterable[Record | Skip], source: str, limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
) -> Collected:  # fmt: skip
    """Return the store of all records that fit.

    Arguments:
        found: What a reader yields.
        source: What is read, for the error.
        limits: What a molecule may be.
        progress: Called with the number of entries seen.

    Raises:
        DataError: When nothing is left; names the commonest reason.
    """
    limits = limits or Limits()
    records: list[Record] = []
    smiles: list[str] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for number, entry in enumerate(found, 1):
        if isinstance(entry, Record):
            why = limits.refuses(entry)
            if why is None:
                records.append(entry)
                smiles.append(canonical(entry))
                if progress is not None:
                    progress(number)
                continue
            entry = Skip(f"{source}: entry {number}", why)
        skipped[entry.reason] += 1
        examples.setdefault(entry.reason, [])
        if len(examples[entry.reason]) < EXAMPLES:
            examples[entry.reason].append(entry.where)
        if progress is not None:
            progress(number)
    if not records:
        if not skipped:
            raise DataError(f"{source}: no molecules in it")
        reason, count = skipped.most_common(1)[0]
        raise DataError(f"{source}: none of {sum(skipped.values())} molecules can be used; {count} times: {reason}")
    return Collected(Store.of(records, smiles), skipped, examples)


def files(where: str | Path | Sequence[str | Path], endings: Sequence[str], key: str = "data.path") -> list[Path]:
    """Return the files of a path, a folder, a pattern or a list of them, sorted within a folder.

    Raises:
        ConfigError: Without a path.
        DataError: When there is no such file.
    """
    if where is None:
        raise ConfigError(f"{key} is not set; give a file or folder as {key}=…")
    if not isinstance(where, str | Path):
        return [file for one in where for file in files(one, endings, key)]
    path = Path(where).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _ends(file, endings))
    else:
        parent = path.parent if path.parent.is_dir() else Path()
        found = sorted(parent.glob(path.name)) if any(sign in path.name for sign in "*?[") else []
    if not found:
        raise DataError(f"{key}={where}: no file there ending in {', '.join(endings)}")
    return found


def _ends(file: Path, endings: Sequence[str]) -> bool:
    return any(file.name.lower().endswith(ending) for ending in endings)
