"""Properties: how close samples come to what they were asked for.

A mean absolute error alone says little: the same error against the requests of other samples, shuffled, is what a model
would have that ignores its condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rdkit import Chem

from suffuse_molecules.descriptors import describe
from suffuse_molecules.judge.report import Report

__all__ = ["asked_errors"]


def asked_errors(name: str, asked: Sequence[Mapping[str, Any]], report: Report) -> dict[str, float]:
    """Return ``mae``, ``mae_shuffled`` and ``judged``, the number of valid samples they are over; nothing if not asked.

    Arguments:
        name: The property, an RDKit descriptor.
        asked: What each sample was asked for.
        report: Of the samples.
    """
    rows = [i for i, want in enumerate(asked) if name in want]
    if not rows:
        return {}
    pairs = []
    for i in rows:
        mol = report.mols[i]
        if report.rows[i].valid and mol is not None:
            pairs.append((float(asked[i][name]), describe(Chem.RemoveHs(mol), [name])[0]))
    if not pairs:
        return {"mae": math.nan, "mae_shuffled": math.nan, "judged": 0.0}
    wanted, found = np.array(pairs).T
    # Every request against every sample: the mean over all shuffles, without drawing one.
    shuffled = np.abs(wanted[:, None] - found[None]).mean()
    return {"mae": float(np.abs(wanted - found).mean()), "mae_shuffled": float(shuffled), "judged": float(len(pairs))}
