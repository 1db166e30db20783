"""What the default runs reach, on whole trainings: minutes each, so all are slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Crippen
from suffuse_molecules.sets import load_mini
from suffuse_molecules.store import split_of

pytestmark = pytest.mark.slow


def suffuse(*words, folder):
    done = subprocess.run(
        [sys.executable, "-m", "suffuse", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def drawn(folder, run, *words):
    out = Path(folder) / f"drawn-{len(list(Path(folder).glob('drawn-*')))}"
    suffuse("sample", f"ckpt={run}", f"out={out}", "batch_size=250", *words, folder=folder)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return rows, json.loads((out / "report.json").read_text()), out


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    folder = tmp_path_factory.mktemp("default")
    suffuse("train", "modality=molecules", "name=m", "every.preview=0", folder=folder)
    return folder, folder / "outputs" / "molecules" / "m"


def test_the_default_run_draws_molecules(default):
    _, run = default
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["valid"] >= 0.93 and figures["unique"] >= 0.8
    assert figures["plausible_geometry"] >= 0.8 and figures["held_out_valid"] == 1


def test_rdkit_agrees_with_the_manifest(default):
    """The SDF, read again by RDKit alone, has the molecules that the manifest calls valid."""
    folder, run = default
    rows, report, out = drawn(folder, run, "num=200")
    supplier = Chem.SDMolSupplier(str(out / "molecules.sdf"), removeHs=False)
    valid = [mol is not None and len(Chem.GetMolFrags(mol)) == 1 for mol in supplier]
    assert np.mean([v == row["valid"] for v, row in zip(valid, rows, strict=True)]) > 0.98
    assert report["rates"]["valid"]["of"] == 200


def test_demands_hold(default):
    folder, run = default
    rows, _, _ = drawn(
        folder, run, "num=200", "condition.elements=[C,O]", "condition.size=[4,5]", "condition.net_charge=0"
    )
    mols = [Chem.MolFromSmiles(row["smiles"]) for row in rows if row["valid"]]
    assert len(mols) > 140
    assert {atom.GetSymbol() for mol in mols for atom in mol.GetAtoms()} == {"C", "O"}
    assert {mol.GetNumAtoms() for mol in mols} == {4, 5}
    assert all(Chem.GetFormalCharge(mol) == 0 for mol in mols)


def test_a_property_is_followed(tmp_path):
    """The error of logP is at most half of what a model that ignores the request would have."""
    suffuse("train", "modality=molecules", "name=c", "data.conditions=[logp]", "every.preview=0", "metrics=none",
            folder=tmp_path)  # fmt: skip
    run = tmp_path / "outputs" / "molecules" / "c"
    rows, report, _ = drawn(tmp_path, run, "num=400", "condition.logp=[-1.0,-0.5,0.0,0.5,1.0,1.5]", "guidance=1.5")
    assert report["figures"]["logp_mae"] <= 0.5 * report["figures"]["logp_mae_shuffled"]
    found = [
        (row["condition"]["logp"], Crippen.MolLogP(Chem.MolFromSmiles(row["smiles"]))) for row in rows if row["valid"]
    ]
    assert np.corrcoef(np.array(found).T)[0, 1] > 0.7 and len(found) > 280


def test_a_scaffold_is_completed(tmp_path):
    """Every completed molecule has the scaffold, and validity is near that of free ones."""
    suffuse(
        "train", "modality=molecules", "name=g", "data.given.fragment=0.3", "data.given.conformer=0.1",
        "data.given.relabel=0.1", "every.preview=0", "metrics=none", folder=tmp_path,
    )  # fmt: skip
    run = tmp_path / "outputs" / "molecules" / "g"
    _, free, _ = drawn(tmp_path, run, "num=300")
    store = load_mini()
    ring = Chem.MolFromSmarts("C1CCC1")
    index = next(i for i, s in enumerate(store.smiles) if s == "CC1CCC1" and split_of(s))
    mol = _mol(store[index])
    Chem.MolToMolFile(mol, str(tmp_path / "core.mol"))
    words = [f"condition.scaffold={tmp_path / 'core.mol'}", "condition.keep=C1CCC1", "condition.size=6"]
    rows, report, _ = drawn(tmp_path, run, "num=300", *words)
    valid = [Chem.MolFromSmiles(row["smiles"]) for row in rows if row["valid"]]
    assert all(mol.HasSubstructMatch(ring) for mol in valid)
    assert report["rates"]["valid"]["value"] > free["rates"]["valid"]["value"] - 0.1
    assert len({Chem.MolToSmiles(mol) for mol in valid}) > 10


def _mol(record):
    from suffuse_molecules.record import to_mol

    mol = to_mol(record)
    Chem.SanitizeMol(mol)
    return Chem.RemoveHs(mol)
