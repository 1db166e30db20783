"""Metrics: what the judge says of a run's samples, and of the run's own held-out molecules beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from suffuse.data import Data, spaced
from suffuse.training.progress import say
from torch import Tensor

from suffuse_molecules.data import MoleculeData
from suffuse_molecules.judge.report import Rate, Report, beside, judge_all
from suffuse_molecules.preview import records

__all__ = ["Judged"]


class Judged:
    """Rates of `suffuse_molecules.judge`, each with the held-out molecules' own beside, and distances to them.

    Arguments:
        strain: Samples whose strain is worked out.
        reference: Molecules of the training and of the held-out set that are judged.
    """

    def __init__(self, strain: int = 100, reference: int = 500) -> None:
        self.strain, self.reference = strain, reference

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures, and print them as a table."""
        assert isinstance(data, MoleculeData)  # the modality's own
        implicit = data.hydrogens == "implicit"
        train = {data.store.smiles[int(row)] for row in data.train.rows}
        report = judge_all(records(samples), implicit, train, self.strain)
        beside(
            report, train=self._judged(data, data.train.rows, implicit, train),
            held_out=self._judged(data, data.val.rows, implicit, train),
        )  # fmt: skip
        distinct = {row.smiles for row in report.rows if row.valid}
        inside = len(distinct & set(data.store.smiles))
        report.rates["in_data"] = Rate(inside, len(distinct), "valid and unique; in any split of the data")
        say(report.table())
        found = {name: rate.value for name, rate in report.rates.items()} | report.figures
        other = report.columns["held_out"]
        found |= {f"held_out_{name}": rate.value for name, rate in other.rates.items()}
        return {name: round(value, 5) for name, value in found.items() if math.isfinite(value)}

    def _judged(self, data: MoleculeData, rows: NDArray[np.int64], implicit: bool, train: set[str]) -> Report:
        chosen = rows[np.array(spaced(len(rows), self.reference))]
        xs = {name: torch.from_numpy(leaf) for name, leaf in data.table.batch(chosen).items()}
        return judge_all(records(xs), implicit, train, min(self.strain, len(chosen)))
