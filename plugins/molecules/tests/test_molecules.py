"""The modality as a whole: contract, demands, given parts, files."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rdkit import Chem
from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.testing import ModalityContract
from suffuse_molecules.codec import Molecules
from suffuse_molecules.conditioner import Constrained, MoleculeConditioner, charge_marginals
from suffuse_molecules.data import BucketStream, bucket_widths
from suffuse_molecules.embed import embed_smiles
from suffuse_molecules.preview import Drawings, records
from suffuse_molecules.record import Record, to_mol
from suffuse_molecules.sets import Mini


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


@pytest.fixture(scope="module")
def data() -> Mini:
    made = Mini(heavy=4, conditions=["logp", "mw"], batch_size=8)
    made.setup()
    return made


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


# Demands.


def conditioner(data):
    return MoleculeConditioner(("logp", "mw"), about=data.spec.about)


def test_demands_are_parsed(data):
    raw = conditioner(data).parse({"logp": [0.5, 1.5], "size": [3, 4], "elements": ["C", "O"], "net_charge": 0}, 4)
    assert raw["logp"].tolist() == [0.5, 1.5, 0.5, 1.5] and raw["mw"].isnan().all()
    assert raw["size_min"].tolist() == [3] * 4 and raw["size_max"].tolist() == [4] * 4
    assert raw["allow_atom"][0].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"logpp": 1}, "did you mean 'logp'"),
        ({"elements": ["C", "Xe"]}, "knows no Xe"),
        ({"size": 0}, "size=0"),
        ({"size": "big"}, "not a whole number"),
        ({"net_charge": 0.5}, "not a whole number"),
        ({"scaffold": "none.sdf"}, "no such file"),
        ({"keep": "CC"}, "give both"),
        ({"conformer": "not a smiles"}, "no SMILES"),
        ({"scaffold": "a.sdf", "relabel": "b.sdf"}, "give one of them"),
    ],
)
def test_bad_demands(data, given, match):
    with pytest.raises(ConfigError, match=match):
        conditioner(data).parse(given, 2)


class Fixed(Denoiser):
    def __init__(self, found):
        super().__init__()
        self.found, self.process = found, None

    def forward(self, x, t, cond=None):
        return Prediction(self.found)


def test_charge_marginals_are_exact():
    """Against all 3^4 assignments."""
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    free = torch.tensor([[True, True, False, True, True]])
    p = torch.softmax(logits[0].double(), -1)
    for total in (-2, 0, 1):
        wanted = torch.zeros(5, 3, dtype=torch.float64)
        for charges in itertools.product((-1, 0, 1), repeat=4):
            if sum(charges) == total:
                atoms = [0, 1, 3, 4]
                weight = torch.stack([p[a, c + 1] for a, c in zip(atoms, charges, strict=True)]).prod()
                for a, c in zip(atoms, charges, strict=True):
                    wanted[a, c + 1] += weight
        wanted = wanted[[0, 1, 3, 4]] / wanted[0].sum()
        found = torch.softmax(charge_marginals(logits, free, torch.tensor([total])).double(), -1)[0, [0, 1, 3, 4]]
        assert (found - wanted).abs().max() < 1e-6
    unreachable = charge_marginals(logits, free, torch.tensor([9]))
    assert torch.equal(unreachable, logits)


def test_elements_that_are_not_allowed_have_no_probability(data):
    x = Molecules(data.spec.about).encode(next(iter(data.train_loader()))["x"])
    rows, width = x["exists"].shape
    logits = {"atom": torch.randn(rows, width, 4), "charge": torch.randn(rows, width, 3)}
    allowed = torch.tensor([True, False, True, False]).expand(rows, -1)
    found = Constrained(Fixed(logits), allowed, None)(x, 0.5).x0
    assert torch.softmax(found["atom"], -1)[..., [1, 3]].max() == 0
    assert torch.equal(found["atom"][..., 0], logits["atom"][..., 0]) and found["charge"] is logits["charge"]


# Given parts.


def write_mol(path, smiles, keep=None):
    record = embed_smiles(smiles)
    mol = to_mol(record)
    Chem.SanitizeMol(mol)
    if keep:
        mol = Chem.RemoveHs(mol)
    Chem.MolToMolFile(mol, str(path))
    return record


def test_a_scaffold_comes_back_where_it_was(data, tmp_path):
    record = write_mol(tmp_path / "core.mol", "C1CC1")
    raw = conditioner(data).parse({"scaffold": str(tmp_path / "core.mol"), "size": 4}, 3)
    codec = Molecules(data.spec.about)
    state = codec.like(torch.arange(3), raw, "cpu")
    assert state["exists"].sum(1).tolist() == [4, 4, 4]
    x = codec.decode(state)
    heavy = record.z > 1
    assert (x["pos"][:, :3] - torch.from_numpy(record.pos[heavy])).abs().max() < 1e-4
    assert (x["bond"][:, :3, :3].sum((1, 2)) == 6).all() and (x["z"][:, :3] == 6).all()
    assert x["fixed_pos"].sum(1).tolist() == [3, 3, 3] and state["free_bond"][:, 0, 3].all()


def test_only_attachment_points_may_be_bonded(data, tmp_path):
    mol = Chem.AddHs(Chem.MolFromSmiles("*CC"))
    from rdkit.Chem import AllChem

    replaced = Chem.RWMol(Chem.AddHs(Chem.MolFromSmiles("CCC")))
    AllChem.EmbedMolecule(replaced, randomSeed=1)
    replaced.GetAtomWithIdx(0).SetAtomicNum(0)
    Chem.MolToMolFile(Chem.RemoveHs(replaced.GetMol(), sanitize=False), str(tmp_path / "r.mol"))
    assert mol is not None
    raw = conditioner(data).parse({"scaffold": str(tmp_path / "r.mol"), "size": 4}, 1)
    state = Molecules(data.spec.about).like(torch.arange(1), raw, "cpu")
    free = state["free_bond"][0]
    assert free[0, 2] and free[0, 3] and not free[1, 2] and not free[1, 3] and free[2, 3]


def test_keep_takes_a_part(data, tmp_path):
    write_mol(tmp_path / "a.mol", "CCO")
    raw = conditioner(data).parse({"scaffold": str(tmp_path / "a.mol"), "keep": "[#6]O"}, 1)
    assert raw["given_z"].tolist() == [[6, 8]]
    with pytest.raises(ConfigError, match="matches nothing"):
        conditioner(data).parse({"scaffold": str(tmp_path / "a.mol"), "keep": "N"}, 1)


def test_parts_that_do_not_fit(data, tmp_path):
    write_mol(tmp_path / "big.mol", "CCCCCC")
    with pytest.raises(ConfigError, match="6 atoms, the model knows molecules of at most 4"):
        conditioner(data).parse({"scaffold": str(tmp_path / "big.mol")}, 1)
    write_mol(tmp_path / "s.mol", "CS")
    with pytest.raises(ConfigError, match="S, which is not among"):
        conditioner(data).parse({"scaffold": str(tmp_path / "s.mol")}, 1)
    flat = Chem.MolFromSmiles("CCO")
    Chem.MolToMolFile(flat, str(tmp_path / "flat.mol"))
    with pytest.raises(ConfigError, match="no 3D"):
        conditioner(data).parse({"relabel": str(tmp_path / "flat.mol")}, 1)


# A model, whole.


@pytest.fixture(scope="module")
def model(data):
    """An untrained model with its codec: what it draws is nonsense, but what is given must hold all the same."""
    from omegaconf import OmegaConf
    from suffuse.app import compose_train
    from suffuse.model import Facts, Model

    words = ["modality=molecules", "model=molecules/xs", "data.heavy=4", "data.conditions=[logp,mw]", "name=x"]
    cfg = OmegaConf.to_container(compose_train(words), resolve=True)
    codec = Molecules(data.spec.about)
    torch.manual_seed(0)
    return Model(cfg, Facts.measure(data, codec, process=cfg["process"])).eval(), codec, cfg


def drawn(model, seeds, batch=None, **condition):
    from suffuse.codec import empty
    from suffuse.model import Recipe

    whole, codec, cfg = model
    cfg = {**cfg, "sampler": {**cfg["sampler"], "steps": 6}}
    raw = whole.conditioner.parse(condition, len(seeds))
    like = empty(codec, whole.facts, seeds, raw, "cpu")
    return codec.decode(whole.draw(Recipe.build(cfg), seeds, raw, like))


def test_a_sample_depends_on_its_seed_alone(model):
    """Neither the batch nor its padding changes it."""
    whole, alone = drawn(model, torch.arange(12)), drawn(model, torch.tensor([7]))
    n = int((alone["z"][0] > 0).sum())
    assert int((whole["z"][7] > 0).sum()) == n
    assert torch.equal(whole["z"][7, :n], alone["z"][0, :n]) and torch.equal(
        whole["bond"][7, :n, :n], alone["bond"][0, :n, :n]
    )
    assert (whole["pos"][7, :n] - alone["pos"][0, :n]).abs().max() < 1e-4


def test_an_untrained_model_keeps_every_demand(model, tmp_path):
    xs = drawn(model, torch.arange(40), size=[3, 4], elements=["C", "O"], net_charge=0)
    assert set((xs["z"] > 0).sum(1).tolist()) == {3, 4} and set(xs["z"].flatten().tolist()) <= {0, 6, 8}
    assert torch.equal(xs["bond"], xs["bond"].transpose(1, 2))
    record = write_mol(tmp_path / "core.mol", "CCO")
    xs = drawn(model, torch.arange(20), scaffold=str(tmp_path / "core.mol"), size=4)
    heavy = record.z > 1
    assert (xs["z"][:, :3] == torch.from_numpy(record.z[heavy].astype(int))).all()
    assert (xs["bond"][:, 0, 1] == 1).all() and (xs["bond"][:, 0, 2] == 0).all()
    assert (xs["pos"][:, :3] - torch.from_numpy(record.pos[heavy])).abs().max() < 1e-3


def test_conformers_and_relabelling(model, tmp_path):
    xs = drawn(model, torch.arange(8), conformer="CCO")
    assert (xs["z"] == torch.tensor([6, 6, 8])).all() and (xs["bond"][:, 0, 1] == 1).all()
    assert xs["pos"].std() > 0.1
    record = write_mol(tmp_path / "a.mol", "CC#N")
    xs = drawn(model, torch.arange(8), relabel=str(tmp_path / "a.mol"))
    assert (xs["pos"] - torch.from_numpy(record.pos[record.z > 1])).abs().max() < 1e-3
    assert len({tuple(row) for row in xs["z"].tolist()}) > 1


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


# The command.


def run(*words):
    from suffuse_molecules.command import judge

    judge([str(word) for word in words])


def test_judge_command(tmp_path, capsys):
    good = embed_smiles("CCO")
    mol = to_mol(good)
    Chem.SanitizeMol(mol)
    text = Chem.MolToMolBlock(mol) + "$$$$\nbroken\n\n\n 9 9\n$$$$\n" + Chem.MolToMolBlock(mol) + "$$$$\n"
    (tmp_path / "a.sdf").write_text(text)
    (tmp_path / "train.smi").write_text("CCO\nCCN\n")
    run(tmp_path / "a.sdf", "--reference", tmp_path / "train.smi", "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "66.7 %" in printed and "all asked for" in printed
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").open()))
    assert [row["valid"] for row in rows] == ["True", "False", "True"] and rows[1]["reason"] == "broken record"
    assert rows[0]["in_train"] == "True" and rows[2]["duplicate_of"] == "0"
    assert (tmp_path / "out" / "overview.png").read_bytes()[:4] == b"\x89PNG"


def test_judge_of_smiles_has_no_geometry(tmp_path, capsys):
    (tmp_path / "a.smi").write_text("CCO\nnope\nc1ccccc1\n")
    run(tmp_path / "a.smi")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rates"]["valid"]["count"] == 2 and "plausible_geometry" not in report["rates"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["none.sdf"], "no such file"),
        (["a.sdf", "b.sdf"], "one file"),
        (["a.sdf", "--rulez", "x"], "did you mean '--rules'"),
        (["a.sdf", "--rules", "strickt"], "did you mean 'strict'"),
        (["a.sdf", "--strain", "many"], "not a whole number"),
        (["a.sdf", "--out"], "needs a value"),
    ],
)
def test_judge_mistakes(words, match):
    from suffuse.errors import SuffuseError

    with pytest.raises(SuffuseError, match=match):
        run(*words)


def test_judge_is_a_command_of_suffuse():
    import subprocess
    import sys

    code = (
        "import sys; sys.argv = ['suffuse', 'judge', '--help']; from suffuse.cli import main; main(); "
        "assert 'rdkit' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: suffuse judge FILE" in done.stdout
