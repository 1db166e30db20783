"""Readers: files of every kind, the broken ones among them, and the store they go to."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections import OrderedDict

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem
from suffuse.errors import ConfigError, DataError
from suffuse_molecules.descriptors import compute, resolve
from suffuse_molecules.embed import embed_many, embed_smiles
from suffuse_molecules.enumeration import enumerate_level, grow_trees, molecules, reject_reason
from suffuse_molecules.files import QM9, SDF, Smiles
from suffuse_molecules.judge import strict
from suffuse_molecules.ragged import Ragged
from suffuse_molecules.readers import Limits, Skip, collect, read_geom, read_qm9, read_sdf, read_smiles, read_xyz
from suffuse_molecules.readers.qm9 import EV
from suffuse_molecules.record import Record, heavy
from suffuse_molecules.sets import load_mini, pack, unpack
from suffuse_molecules.store import Store, canonical, split_of, write_store


def embedded(smiles, hydrogens=True):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    return mol if hydrogens else Chem.RemoveHs(mol)


def sdf(*mols, **tags):
    out = io.StringIO()
    writer = Chem.SDWriter(out)
    for mol in mols:
        for name, value in tags.items():
            mol.SetProp(name, str(value))
        writer.write(mol)
    writer.close()
    return out.getvalue()


def skips(found):
    return [entry.reason for entry in found if isinstance(entry, Skip)]


def smiles_of(found):
    return [canonical(entry) for entry in found if isinstance(entry, Record)]


# SDF.


def test_sdf_with_tags_and_missing_hydrogens(tmp_path):
    (tmp_path / "a.sdf").write_text(sdf(embedded("CCO"), embedded("c1ccncc1", hydrogens=False), gap=6.5, note="text"))
    found = list(read_sdf(tmp_path / "a.sdf"))
    assert smiles_of(found) == ["CCO", "c1ccncc1"]
    assert [len(record) for record in found] == [9, 11]
    assert found[0].props == {"gap": 6.5}


def test_sdf_gzipped_v3000_in_a_folder(tmp_path):
    mol = embedded("CC(=O)[O-]")
    (tmp_path / "a.sdf.gz").write_bytes(gzip.compress(sdf(embedded("CCN")).encode()))
    (tmp_path / "b.mol").write_text(Chem.MolToV3KMolBlock(mol))
    (tmp_path / "notes.txt").write_text("not a molecule")
    found = list(read_sdf(tmp_path))
    assert smiles_of(found) == ["CCN", "CC(=O)[O-]"] and found[1].charge.sum() == -1


def test_a_broken_record_costs_itself_alone(tmp_path):
    good = sdf(embedded("CCO"))
    (tmp_path / "a.sdf").write_text(good + "garbage\nmore\n\n 99 99\n$$$$\n" + good)
    found = list(read_sdf(tmp_path / "a.sdf"))
    assert smiles_of(found) == ["CCO", "CCO"] and len(skips(found)) == 1
    assert "record 2" in next(entry for entry in found if isinstance(entry, Skip)).where


def test_reasons_of_sdf(tmp_path):
    flat = Chem.MolFromSmiles("CCCCCC")
    AllChem.Compute2DCoords(flat)
    salt = embedded("CC(=O)O.[Na+]")
    five = Chem.MolFromMolBlock(Chem.MolToMolBlock(embedded("C")).replace("C  ", "N  "), sanitize=False, removeHs=False)
    (tmp_path / "a.sdf").write_text(sdf(flat, salt, five))
    assert skips(read_sdf(tmp_path / "a.sdf")) == [
        "no 3D coordinates", "several fragments", "not sane: AtomValenceException"
    ]  # fmt: skip
    assert smiles_of(read_sdf(tmp_path / "a.sdf", keep_largest=True)) == ["CC(=O)O"]


def test_nan_coordinates_are_a_reason(tmp_path):
    record = embed_smiles("CCO")
    record.pos[0, 0] = np.nan
    with pytest.raises(DataError, match=r"x.sdf: none of 1 molecules can be used; 1 times: NaN"):
        collect([record], "x.sdf")


def test_limits_and_their_counts(made):
    entries = [made("CCO"), made("CCBr"), made("CCCCCCC"), Skip("x: 4", "broken record")]
    found = collect(entries, "x", Limits(("H", "C", "O"), max_atoms=10))
    assert list(found.store.smiles) == ["CCO"]
    assert found.skipped == {"element Br outside data.elements": 1, "more than 10 atoms": 1, "broken record": 1}
    assert "1 molecules read, 3 left out" in found.summary() and "(x: 4)" in found.summary()


def test_nothing_there(tmp_path):
    (tmp_path / "empty.sdf").write_text("")
    with pytest.raises(DataError, match="no molecules in it"):
        collect(read_sdf(tmp_path / "empty.sdf"), "empty.sdf")
    with pytest.raises(DataError, match="no file there ending in"):
        list(read_sdf(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        list(read_sdf(None))
    with pytest.raises(ConfigError, match="'Xx' is no element"):
        Limits(("C", "Xx"))


# SMILES.


def test_csv_with_properties_and_bad_rows(tmp_path):
    text = "id,Smiles,gap,note\na,CCO,6.5,x\nb,not_a_smiles,1,y\nc,C1CC1,,z\nd,CC.O,3,w\n"
    (tmp_path / "a.csv").write_text(text)
    found = list(read_smiles(tmp_path / "a.csv"))
    assert smiles_of(found) == ["CCO", "C1CC1"] and skips(found) == ["unparsable SMILES", "several fragments"]
    assert found[1].where == "a.csv: line 3"
    assert found[0].props == {"gap": 6.5} and np.isnan(found[2].props["gap"])
    store = collect(found, "a.csv").store
    assert store.columns == ("gap",) and store.props[0, 0] == 6.5


def test_smi_and_a_missing_column(tmp_path):
    (tmp_path / "a.smi").write_text("CCO ethanol\n\nCCN amine\n")
    assert smiles_of(read_smiles(tmp_path / "a.smi")) == ["CCO", "CCN"]
    (tmp_path / "b.csv").write_text("structure,x\nCCO,1\n")
    with pytest.raises(ConfigError, match=r"data\.column=structur: .*did you mean 'structure'"):
        list(read_smiles(tmp_path / "b.csv", column="structur"))
    assert smiles_of(read_smiles(tmp_path / "b.csv", column="structure")) == ["CCO"]


def test_embedding_is_a_function_of_the_molecule():
    one, other = embed_smiles("CCO"), embed_smiles("OCC")
    assert sorted(np.round(one.pos, 4).tolist()) == sorted(np.round(embed_smiles("CCO").pos, 4).tolist())
    assert canonical(one) == canonical(other)
    many = list(embed_many(["CCO", "bad", "CCN"], workers=2))
    assert np.array_equal(many[0].pos, one.pos) and many[1] == "unparsable SMILES" and len(many[2]) == 10


def test_real_smiles_train_end_to_end(real, tmp_path, monkeypatch):
    monkeypatch.setenv("SUFFUSE_CACHE", str(tmp_path))
    data = Smiles(real / "qm9_smiles" / "qm9_gap.csv", limit=60, conditions=["gap", "logp"])
    data.setup()
    assert len(data.store) >= 50
    assert set(data.store.columns) == {"gap", "mol_weight", "num_rotatable_bonds", "bertz_ct"}
    batch = next(iter(data.train_loader()))
    assert torch_all_finite(batch["x"]["pos"]) and batch["cond"]["gap"].min() > 1


def torch_all_finite(x):
    return bool(x.isfinite().all())


# XYZ, QM9, GEOM.


def xyz(mol, comment=""):
    lines = [str(mol.GetNumAtoms()), comment]
    for atom, (x, y, z) in zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True):
        lines.append(f"{atom.GetSymbol()} {x:.5f} {y:.5f} {z:.5f}")
    return "\n".join(lines) + "\n"


def test_xyz_frames_extended_comments_and_charges(tmp_path):
    extended = "Properties=pos:R:3:species:S:1 energy=-1.5 charge=-1"
    ion = embedded("CC(=O)[O-]")
    turned = xyz(ion, extended).splitlines()
    turned[2:] = [" ".join([*row.split()[1:], row.split()[0]]) for row in turned[2:]]
    (tmp_path / "a.xyz").write_text(xyz(embedded("CCO"), "energy=2.5") + "\n".join(turned) + "\n")
    found = list(read_xyz(tmp_path / "a.xyz"))
    assert smiles_of(found) == ["CCO", "CC(=O)[O-]"]
    assert [record.props for record in found] == [{"energy": 2.5}, {"energy": -1.5}]


def test_broken_xyz(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\nC 0 0 0\nQq 0 0 1\n" + "2\n\nC 0 0 x\nH 0 0 1\n" + "nonsense\n")
    found = list(read_xyz(tmp_path / "a.xyz"))
    assert skips(found) == ["'Qq' is no element", "broken coordinates", "broken frame"]
    assert found[2].where == "a.xyz: line 9"


def qm9_file(number, mol, smiles):
    values = ["1.0"] * 15
    values[7], values[10] = "0.25", "-40.5*^0"
    head = [str(mol.GetNumAtoms()), f"gdb {number}\t" + "\t".join(values)]
    rows = [line + "\t-0.1" for line in xyz(mol).splitlines()[2:]]
    return "\n".join([*head, *rows, "100.0\t200.0", f"{smiles}\t{smiles}", "InChI=1\tInChI=1"]) + "\n"


def test_qm9_units_uncharacterized_and_archive(tmp_path):
    texts = {
        "dsgdb9nsd_000001.xyz": qm9_file(1, embedded("CCO"), "CCO"),
        "dsgdb9nsd_000002.xyz": qm9_file(2, embedded("CCN"), "CCN"),
        "dsgdb9nsd_000003.xyz": qm9_file(3, embedded("CCC"), "CC=C"),
        "dsgdb9nsd_000004.xyz": "3\nnothing\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "uncharacterized.txt").write_text("Index  Smiles\n-----\n    2  CCN  x\n")
    found = list(read_qm9(tmp_path))
    assert smiles_of(found) == ["CCO"]
    assert found[0].props["gap"] == pytest.approx(0.25 * EV) and found[0].props["cv"] == 1.0
    assert found[0].props["u0"] == pytest.approx(-40.5 * EV)
    assert skips(found) == ["uncharacterized", "perceived bonds are not those of its SMILES", "not a file of QM9"]
    archive = tmp_path / "packed" / "dsgdb9nsd.xyz.tar.bz2"
    archive.parent.mkdir()
    with tarfile.open(archive, mode="w:bz2") as packed:
        for name, text in texts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            packed.addfile(info, io.BytesIO(text.encode()))
    assert smiles_of(read_qm9(archive)) == ["CCO", "CCN"]
    data = QM9(str(tmp_path), conditions=["gap", "u0_atom"])
    assert next(entry for entry in data.read() if isinstance(entry, Record)).props["gap"] > 6


def test_geom_reads_molecules_and_runs_nothing(tmp_path):
    mols = [embedded("CCO"), embedded("CCO")]
    path = tmp_path / "train_data.pickle"
    path.write_bytes(pickle.dumps([("CCO", mols), ("x", [OrderedDict()]), "nothing"]))
    found = list(read_geom(path, conformers=2))
    assert smiles_of(found) == ["CCO", "CCO"] and len(skips(found)) == 2

    class Evil:
        def __reduce__(self):
            return (__import__("os").system, (f"touch {tmp_path / 'ran'}",))

    path.write_bytes(pickle.dumps([("CCO", [Evil()])]))
    with pytest.raises(DataError, match=r"train_data\.pickle: refused: it asks for \w+\.system"):
        list(read_geom(path))
    assert not (tmp_path / "ran").exists()


# The store.


def test_store_is_what_was_written(made, tmp_path):
    records = [made("CCO"), made("C"), made("c1cc[nH]c1")]
    store = write_store(tmp_path / "s", Store.of(records), {"skipped": {}})
    again = Store.open(tmp_path / "s")
    assert isinstance(again.pos, np.memmap) and len(again) == 3 and again.sizes.tolist() == [9, 5, 10]
    for one, other in zip(records, (again[i] for i in range(3)), strict=True):
        assert np.array_equal(one.pos, other.pos) and np.array_equal(one.bonds, other.bonds)
    assert list(store.smiles) == ["CCO", "C", "c1cc[nH]c1"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    (tmp_path / "s" / "pos.npy").unlink()
    with pytest.raises(DataError, match="no store of molecules"):
        Store.open(tmp_path / "s")


def test_ragged_batches_and_heavy_atoms(made):
    records = [made("CCO"), made("C"), made("C[N+](=O)[O-]")]
    store = Store.of(records)
    table = Ragged(store.pos, store.z, store.charge, store.offsets, store.bonds, store.bond_offsets)
    batch = table.batch([2, 0], width=12)
    assert np.array_equal(batch["z"][0, :7], records[2].z) and (batch["z"][:, 9:] == 0).all()
    assert np.array_equal(batch["bond"][1, :9, :9], records[0].matrix())
    small, wanted = table.heavy().batch([0, 1, 2]), [heavy(record) for record in records]
    for row, record in enumerate(wanted):
        n = len(record)
        assert np.array_equal(small["z"][row, :n], record.z) and np.array_equal(
            small["bond"][row, :n, :n], record.matrix()
        )
        assert np.array_equal(small["charge"][row, :n], record.charge)
        assert np.array_equal(small["pos"][row, :n], record.pos) and (small["z"][row, n:] == 0).all()


def test_files_are_cached_until_they_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUFFUSE_CACHE", str(tmp_path / "cache"))
    many = [embedded(s) for s in ("CCO", "CCN", "CCC", "CCCC", "CO", "CN", "CC", "CCF", "COC", "CNC", "C=C", "C#C")]
    (tmp_path / "a.sdf").write_text(sdf(*many))
    SDF(str(tmp_path / "a.sdf")).load()
    printed = capsys.readouterr()
    assert "12 molecules read, 0 left out" in printed.out + printed.err
    monkeypatch.setattr(SDF, "read", lambda self: pytest.fail("read again"))
    assert len(SDF(str(tmp_path / "a.sdf")).load()) == 12
    monkeypatch.undo()
    monkeypatch.setenv("SUFFUSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.sdf").write_text(sdf(*many[:5]))
    assert len(SDF(str(tmp_path / "a.sdf")).load()) == 5


def test_splits_are_a_function_of_the_smiles():
    store = load_mini()
    splits = [split_of(smiles) for smiles in store.smiles]
    shares = [splits.count(name) / len(splits) for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    assert [split_of(s) for s in ("C", "CCO", "c1ccoc1", "CC#N")] == [
        split_of(s) for s in ("C", "CCO", "c1ccoc1", "CC#N")
    ]
    assert len(set(store.smiles)) == len(store)


# The small set.


def test_counts_of_the_enumeration():
    trees = grow_trees(5)
    assert [len(trees[k]) for k in (2, 3, 4, 5)] == [6, 19, 63, 259]
    assert [len(enumerate_level(trees[k])[0]) for k in (2, 3, 4, 5)] == [8, 23, 103, 498]


def test_the_shipped_set_is_what_the_script_makes():
    """At most four heavy atoms again, bit for bit; the whole takes half a minute."""
    store, again = load_mini(4), list(embed_many(list(molecules(4))))
    records = [one for one in again if isinstance(one, Record)]
    assert list(store.smiles) == [canonical(one) for one in records]
    for i, one in enumerate(records):
        centred = one.pos - one.pos.mean(0)
        assert np.abs(store[i].pos - centred).max() < 2e-3
        assert np.array_equal(store[i].bonds, one.bonds)


def test_the_shipped_set_is_whole_and_right():
    store = load_mini()
    assert len(store) == 3505 and store.sizes.max() == 20
    assert set(store.z.tolist()) == {1, 6, 7, 8, 9} and set(store.charge.tolist()) == {-1, 0, 1}
    assert all(strict(store[i]).valid for i in range(0, len(store), 7))


def test_packing(tmp_path, made):
    store = Store.of([made("CCO"), made("C[N+](=O)[O-]")])
    pack(store, tmp_path / "x.npz")
    back = unpack(tmp_path / "x.npz")
    assert np.array_equal(back.bonds, store.bonds) and np.array_equal(back.charge, store.charge)
    assert list(back.smiles) == list(store.smiles)
    centred = store[0].pos - store[0].pos.mean(0)
    assert np.abs(back[0].pos - centred).max() < 6e-4


@pytest.mark.parametrize(
    ("smiles", "why"),
    [
        ("OO", "no carbon"),
        ("C=C=C", "allene"),
        ("OC=C", "enol"),
        ("NCO", "hemiacetal"),
        ("C1CC12CC2", "fused or spiro 3-ring"),
    ],
)
def test_filters_name_what_they_refuse(smiles, why):
    assert reject_reason(Chem.MolFromSmiles(smiles)) == why
    assert reject_reason(Chem.MolFromSmiles("CCO")) is None


# Descriptors.


def test_descriptors_by_any_name(made):
    from rdkit.Chem import Crippen, Descriptors

    mol = Chem.MolFromSmiles("CCO")
    assert resolve("logp")(mol) == Crippen.MolLogP(mol) == resolve("MolLogP")(mol)
    assert resolve("mw")(mol) == pytest.approx(46.07, abs=0.01) and resolve("QED")(mol) == Descriptors.qed(mol)
    with pytest.raises(ConfigError, match="did you mean 'logp'"):
        resolve("logpp")


def test_a_column_of_the_data_comes_first(made):
    from dataclasses import replace

    store = Store.of([replace(made("CCO"), props={"logp": 42.0, "gap": 1.0}), made("CCN")])
    found = compute(store, ["logp", "gap", "tpsa"])
    assert found[0, 0] == 42 and np.isnan(found[1, 0]) and found[0, 2] == pytest.approx(20.23)
    with pytest.raises(ConfigError, match=r"data\.conditions: no column or descriptor 'gapp'.*'gap'"):
        compute(store, ["gapp"])
