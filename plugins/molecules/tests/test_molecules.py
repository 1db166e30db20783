"""The modality as a whole: contract, batches, files."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rdkit import Chem
from suffuse.errors import ConfigError
from suffuse.testing import ModalityContract
from suffuse_molecules.data import BucketStream, bucket_widths
from suffuse_molecules.preview import Drawings, records
from suffuse_molecules.record import Record


class TestModality(ModalityContract):
    modality = "molecules"
    overrides = ("model=molecules/xs",)

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        (folder / "empty.sdf").write_text("")
        (folder / "bad.smi").write_text("not_a_smiles\nXx\n")
        return [
            (["data=molecules/sdf"], "data.path is not set"),
            (["data=molecules/sdf", f"data.path={folder / 'none.sdf'}"], "no such file"),
            (["data=molecules/sdf", f"data.path={folder / 'empty.sdf'}"], "no molecules in it"),
            (
                ["data=molecules/smiles", f"data.path={folder / 'bad.smi'}"],
                "none of 2 molecules can be used; 2 times: unpars",
            ),
            (["data.heavy=9"], "data.heavy=9"),
            (["data.hydrogens=maybe"], "data.hydrogens=maybe"),
            (["data.conditions=[logpp]"], "did you mean 'logp'"),
            (["+data.max_atoms=0"], "data.max_atoms=0"),
            (["data.given.fragment=2"], "data.given.fragment=2"),
        ]


class TestExplicitWithConditions(ModalityContract):
    modality = "molecules"
    overrides = (
        "data.heavy=3", "data.hydrogens=explicit", "data.conditions=[logp,qed]", "data.given.fragment=0.3",
        "data.given.conformer=0.2", "data.given.relabel=0.2", "model=molecules/xs", "process=molecules/masked",
    )  # fmt: skip

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return []


# Batches.


def test_buckets_have_the_least_padding():
    sizes = np.array([3] * 5 + [4] * 50 + [9] * 20 + [10] * 30 + [20] * 2)
    found = bucket_widths(sizes, 3)

    def cost(widths):
        return sum(float(min(w for w in widths if w >= n)) ** 2 for n in sizes)

    every = [(*c, 20) for c in itertools.combinations([3, 4, 9, 10], 2)]
    assert cost(found) == min(cost(widths) for widths in every)
    assert bucket_widths(np.array([5, 5])) == [5]


def test_an_epoch_holds_every_molecule_and_ranks_share_a_bucket():
    sizes = np.random.default_rng(0).integers(3, 20, 200)
    stream = BucketStream(sizes, 16, seed=1, world=2)
    batches = stream.epoch(0)
    assert set(np.concatenate(batches).tolist()) == set(range(200))
    for batch in batches:
        assert len(batch) % 2 == 0 and len(set(stream.bucket[batch].tolist())) == 1
    ranks = [BucketStream(sizes, 16, 1, 3, rank, 2) for rank in (0, 1)]
    halves = [next(iter(r)) for r in ranks]
    assert [i for half in halves for _, i in half] == stream.epoch(0)[3].tolist()
    assert stream.padding < 0.2 and stream.epoch(1)[0].tolist() != batches[0].tolist()


# Files.


def large(data, count):
    """Numbers of training molecules of four heavy atoms."""
    return np.flatnonzero(data.train.sizes == 4)[:count].tolist()


def test_samples_are_one_sdf_with_a_report(data, tmp_path):
    batch = data.train.batch([(0, i) for i in large(data, 5)])
    preview = Drawings(about=data.spec.about, polish=True)
    xs = {name: leaf.clone() for name, leaf in batch["x"].items()}
    xs["bond"][0] = 3  # no molecule
    rows = [{"index": i, "seed": 10 + i, "condition": {"logp": 0.5}} for i in range(5)]
    preview.write(xs, rows, tmp_path)
    supplier = Chem.SDMolSupplier(str(tmp_path / "molecules.sdf"), removeHs=False, sanitize=False)
    mols = list(supplier)
    assert len(mols) == 5 and [int(mol.GetProp("seed")) for mol in mols] == [10, 11, 12, 13, 14]
    assert [mol.GetProp("valid") for mol in mols] == ["False", *["True"] * 4]
    for mol, row in zip(mols[1:], rows[1:], strict=True):
        Chem.SanitizeMol(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False) == row["smiles"] == mol.GetProp("smiles")
        assert mol.GetNumAtoms() == Chem.AddHs(Chem.MolFromSmiles(row["smiles"])).GetNumAtoms()
        pos = mol.GetConformer().GetPositions()
        distances = np.linalg.norm(pos[:, None] - pos[None], axis=-1) + np.eye(len(pos))
        assert distances.min() > 0.8  # hydrogens have places of their own
        assert float(mol.GetProp("logp")) == pytest.approx(Chem.Crippen.MolLogP(Chem.RemoveHs(mol)), abs=1e-4)
    assert rows[0]["valid"] is False and "valence" in rows[0]["reason"]
    assert all(row["in_train"] for row in rows[1:])
    table = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["valid"] for row in table] == ["False", *["True"] * 4]
    figures = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert figures["logp_judged"] == 4
    polished = [m for m in Chem.SDMolSupplier(str(tmp_path / "polished.sdf"), removeHs=False)]
    assert len(polished) == 4 and float(polished[0].GetProp("strain_after")) <= float(
        polished[0].GetProp("strain_before")
    )


def test_the_sheet_tells_valid_from_invalid(data, tmp_path):
    xs = {name: leaf.clone() for name, leaf in data.train.batch([(0, i) for i in large(data, 4)])["x"].items()}
    xs["bond"][0] = 3
    path = Drawings(about=data.spec.about).overview(xs, [""] * 4, tmp_path / "o.png")
    pixels = np.asarray(Image.open(path)).reshape(-1, 3)
    red, green = ((pixels == colour).all(1).sum() for colour in ((200, 62, 52), (34, 139, 94)))
    assert red > 300 and 2.5 < green / red < 3.8


def test_wandb_gets_drawings_and_molecules(data):
    xs = data.train.batch([(0, i) for i in range(3)])["x"]
    media = Drawings(about=data.spec.about).media(xs, [""] * 3)
    assert [type(item).__name__ for item in media["drawings"]] == ["Image"]
    assert [type(item).__name__ for item in media["molecules"]] == ["Molecule"] * 3
    # The coordinates are the sample's own: distances of heavy atoms in the file, which is rounded to 0.001 Angstrom.
    for item, record in zip(media["molecules"], records(xs), strict=True):
        shown = Chem.MolFromPDBFile(item._path, removeHs=False, sanitize=False).GetConformer().GetPositions()
        apart, wanted = ([np.linalg.norm(p[0] - p[i]) for i in range(1, len(record.z))] for p in (shown, record.pos))
        assert np.allclose(apart, wanted, atol=0.005)


def test_records_of_a_batch(data):
    batch = data.train.batch([(0, 3)])
    (record,) = records(batch["x"])
    row = int(data.train.rows[3])
    assert isinstance(record, Record)
    whole = data.store[row]
    assert np.array_equal(record.z, whole.z[whole.z > 1])


def test_rules_of_the_preview():
    with pytest.raises(ConfigError, match="rules=loose"):
        Drawings(rules="loose")
