"""What is asked of samples: conditions, given parts, and that a model keeps them whatever it has learned."""

from __future__ import annotations

import itertools

import pytest
import torch
from rdkit import Chem
from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse_molecules.codec import Molecules
from suffuse_molecules.conditioner import Constrained, MoleculeConditioner, charge_marginals
from suffuse_molecules.embed import embed_smiles
from suffuse_molecules.record import to_mol


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
