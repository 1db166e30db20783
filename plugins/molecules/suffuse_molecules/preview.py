"""Preview: samples as one SDF with a report, a sheet of drawings, and W&B media."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suffuse.errors import ConfigError

from suffuse_molecules.data import key
from suffuse_molecules.descriptors import describe, resolve
from suffuse_molecules.drawing import sheet
from suffuse_molecules.judge.report import RULES, Report, judge_all
from suffuse_molecules.polish import polish
from suffuse_molecules.record import Record
from suffuse_molecules.sdf import write_sdf

__all__ = ["Drawings", "known", "records"]


def records(xs: Mapping[str, torch.Tensor]) -> list[Record]:
    """Return the molecules of a decoded batch, see `suffuse_molecules.codec`."""
    found = []
    for row in range(len(xs["z"])):
        there = (xs["z"][row] > 0).cpu()
        bond = xs["bond"][row].cpu()[there][:, there]
        i, j = torch.nonzero(torch.triu(bond, 1), as_tuple=True)
        bonds = torch.stack([i, j, bond[i, j]], 1).numpy().astype("int16")
        found.append(
            Record(
                xs["pos"][row].cpu()[there].float().nan_to_num().numpy(),
                xs["z"][row].cpu()[there].numpy().astype("uint8"),
                xs["charge"][row].cpu()[there].numpy().astype("int8"), bonds,
            )
        )  # fmt: skip
    return found


def known(about: Mapping[str, Any]) -> set[str]:
    """Return the keys of the training molecules that a checkpoint remembers."""
    text = about.get("known", "")
    return {text[i : i + 16] for i in range(0, len(text), 16)}


class Drawings:
    """Writes ``molecules.sdf``, ``report.csv``, ``report.json`` and sheets of drawings.

    Arguments:
        rules: What is called valid: ``strict``, ``edm`` or ``perceived``.
        strain: Samples whose strain is worked out.
        polish: Also write ``polished.sdf``.
        about: The data's facts.

    Raises:
        ConfigError: For other rules.
    """

    def __init__(
        self, rules: str = "strict", strain: int = 100, polish: bool = False, about: Mapping[str, Any] | None = None
    ) -> None:
        if rules not in RULES:
            raise ConfigError(f"preview.rules={rules} must be one of {', '.join(RULES)}")
        self.rules, self.strain, self.polish = rules, strain, polish
        self.about = dict(about or {})
        self.implicit = self.about.get("hydrogens") == "implicit"
        self._known = known(self.about)

    def judged(self, xs: Any, strained: int = 0) -> tuple[list[Record], Report]:
        """Return the molecules of a batch and what is said of them."""
        found = records(xs)
        seen = (lambda smiles: key(smiles) in self._known) if self._known else None
        return found, judge_all(found, self.implicit, seen, strained)

    def valid(self, report: Report) -> list[bool]:
        """Return the verdicts of the chosen rules."""
        of = {"strict": "valid", "edm": "edm_stable", "perceived": "perceived"}[self.rules]
        return [bool(getattr(row, of)) for row in report.rows]

    def save(self, x: Any, stem: Path) -> Path:
        """Write one molecule as an SDF and return its path."""
        found, report = self.judged({name: leaf[None] for name, leaf in x.items()})
        return write_sdf(stem.with_name(f"{stem.name}.sdf"), report.mols, found, [self._tags(report, 0, {})])

    def write(self, xs: Any, rows: Sequence[dict[str, Any]], out: Path) -> None:
        """Write all molecules and the report, and add SMILES and verdict to the manifest's rows."""
        found, report = self.judged(xs, self.strain)
        self._asked(report, rows)
        tags = []
        for place, row in enumerate(rows):
            judged = report.rows[place]
            row |= {
                "file": "molecules.sdf", "smiles": judged.smiles, "valid": judged.valid, "reason": judged.reason,
                "in_train": judged.in_train, "duplicate_of": judged.duplicate_of,
            }  # fmt: skip
            row |= _kept(xs, place)
            tags.append(self._tags(report, place, row))
        write_sdf(out / "molecules.sdf", report.mols, found, tags)
        if self.polish:
            self._polished(report, found, tags, out)
        report.write(out)

    def _tags(self, report: Report, place: int, row: Mapping[str, Any]) -> dict[str, Any]:
        judged = report.rows[place]
        tags: dict[str, Any] = {"index": row.get("index", place), "seed": row.get("seed")}
        tags |= {f"asked_{name}": value for name, value in row.get("condition", {}).items() if name != "label"}
        mol = report.mols[place]
        if mol is not None and self.about.get("conditions"):
            from rdkit import Chem

            for name, value in zip(self._computed(), describe(Chem.RemoveHs(mol), self._computed()), strict=True):
                tags[name] = value
        tags |= {
            "smiles": judged.smiles, "valid": judged.valid, "reason": judged.reason, "in_train": judged.in_train,
            "strain": judged.strain if judged.strain == judged.strain else None,
        }  # fmt: skip
        return tags

    def _computed(self) -> list[str]:
        """Return the conditions that can be worked out for a new molecule; a column of the data cannot."""
        found = []
        for name in self.about.get("conditions", []):
            try:
                resolve(name)
            except ConfigError:
                continue
            found.append(name)
        return found

    def _asked(self, report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put into the report how far each property is from what was asked, and from what others were asked for."""
        from suffuse_molecules.properties import asked_errors

        wanted = [row.get("condition", {}) for row in rows]
        for name in self._computed():
            for what, value in asked_errors(name, wanted, report).items():
                report.figures[f"{name}_{what}"] = value
                report.over[f"{name}_{what}"] = "valid samples of those asked for it"

    def _polished(self, report: Report, found: Sequence[Record], tags: Sequence[dict[str, Any]], out: Path) -> None:
        mols: list[Any] = []
        kept: list[Record] = []
        more: list[dict[str, Any]] = []
        for i, (row, mol) in enumerate(zip(report.rows, report.mols, strict=True)):
            if not row.valid or mol is None:
                continue
            done = polish(mol)
            mols.append(done.mol)
            kept.append(found[i])
            more.append(
                {**tags[i], "polish_rmsd": done.rmsd, "strain_before": done.strain_before,
                 "strain_after": done.strain_after, "polish_converged": done.converged}
            )  # fmt: skip
        write_sdf(out / "polished.sdf", mols, kept, more)
        for name in ("polish_rmsd", "strain_before", "strain_after"):
            values = [tags[name] for tags in more if not math.isnan(tags[name])]
            figure = f"polished_{name.removeprefix('polish_')}"
            report.figures[figure] = float(np.median(values)) if values else math.nan
            report.over[figure] = f"median of {len(values)} relaxed copies"

    def overview(self, xs: Any, captions: Sequence[str], path: Path) -> Path:
        """Write the sheet of drawings and return its path."""
        found, report = self.judged(xs)
        sheet(report.mols, found, self.valid(report), self._lines(report, captions), path)
        return path

    def _lines(self, report: Report, captions: Sequence[str]) -> list[list[str]]:
        lines = []
        for row, good, caption in zip(report.rows, self.valid(report), captions, strict=True):
            why = row.smiles if good else row.reason or f"not {self.rules}"
            lines.append([why, *([caption] if caption else [])])
        most = max((len(text) for text in lines), default=1)
        return [text + [""] * (most - len(text)) for text in lines]

    def media(self, xs: Any, captions: Sequence[str]) -> dict[str, list[Any]]:
        """Return the sheet as a ``wandb.Image`` and the sane molecules as ``wandb.Molecule``."""
        import wandb  # takes a second that runs without W&B need not wait

        found, report = self.judged(xs)
        picture = sheet(report.mols, found, self.valid(report), self._lines(report, captions), None)
        molecules = [
            # The model's own coordinates are what is shown, not new ones of a force field.
            wandb.Molecule.from_rdkit(mol, caption=row.smiles, convert_to_3d_and_optimize=False)
            for mol, row in zip(report.mols, report.rows, strict=True)
            if mol is not None and row.valid
        ]
        return {"drawings": [wandb.Image(picture)]} | ({"molecules": molecules} if molecules else {})


def _kept(xs: Mapping[str, torch.Tensor], place: int) -> dict[str, Any]:
    """Return how many atoms of a sample were given, where any were."""
    given = int((xs["fixed_pos"][place] | xs["fixed_atom"][place]).sum())
    return {"given_atoms": given} if given else {}
