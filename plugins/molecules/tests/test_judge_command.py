"""``suffuse judge`` on what people have: other programs' files, tables of SMILES, and mistakes."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys

import pytest
from rdkit import Chem
from suffuse.errors import ConfigError, DataError, SuffuseError
from suffuse_molecules import command
from suffuse_molecules.embed import embed_smiles
from suffuse_molecules.record import to_mol


def run(*words) -> None:
    command.judge([str(word) for word in words])


def rows(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "report.csv").open()))


def figures(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def sdf(made):
    """The text of an SDF of SMILES; ``heavy`` leaves hydrogens out."""

    def text(*smiles: str, heavy: bool = False) -> str:
        found = ""
        for one in smiles:
            mol = to_mol(made(one))
            Chem.SanitizeMol(mol)
            found += Chem.MolToMolBlock(Chem.RemoveHs(mol) if heavy else mol) + "$$$$\n"
        return found

    return text


def test_a_zipped_file_of_many_kinds(sdf, tmp_path, capsys):
    aromatic = Chem.MolToMolBlock(Chem.MolFromMolBlock(sdf("c1ccoc1"), removeHs=False), kekulize=False) + "$$$$\n"
    assert "  4  0" in aromatic  # a vendor's bonds of type 4
    cobalt = sdf("CO").replace(" O ", " Co")
    with gzip.open(tmp_path / "a.sdf.gz", "wt") as out:
        out.write(sdf("CCO") + aromatic + "no record\n\n\n 5\n$$$$\n" + cobalt + sdf("CCO"))
    run(tmp_path / "a.sdf.gz", "--out", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["valid"] for row in found] == ["True", "True", "False", "False", "True"]
    assert [row["smiles"] for row in found[:2]] == ["CCO", "c1ccoc1"]
    assert found[2]["reason"] == "broken record" and found[3]["reason"] == "no known valence of Co1"
    assert found[4]["duplicate_of"] == "0" and float(found[0]["strain"]) == pytest.approx(0, abs=0.01)
    printed = capsys.readouterr().out
    assert "60.0 %" in printed and "all asked for (5)" in printed and "1 broken record" in printed


def test_missing_hydrogens_are_completed_only_on_demand(sdf, tmp_path, capsys):
    (tmp_path / "a.sdf").write_text(sdf("CCO", "CCN", heavy=True))
    run(tmp_path / "a.sdf")
    assert figures(tmp_path)["rates"]["valid"]["count"] == 0
    assert "2 of 2 molecules have no hydrogen atoms; --implicit" in capsys.readouterr().out
    run(tmp_path / "a.sdf", "--implicit")
    assert figures(tmp_path)["rates"]["valid"]["count"] == 2
    assert figures(tmp_path)["hydrogens"] == "completed by RDKit"
    printed = capsys.readouterr().out
    assert "RDKit completed the hydrogens" in printed and "--implicit" not in printed


def test_smiles_are_judged_as_graphs(tmp_path):
    """A radical in brackets stays one: nothing is filled in behind its back."""
    lines = {
        "CCO": "", "[CH3]": "1 unpaired electron", "nope": "unparsable SMILES", "c1cccc1": "cannot be kekulised",
        "C(C)(C)(C)(C)C": "valence 5 of C0", "CCN.Cl": "2 fragments", "c1cc[nH]c1": "", "C[N+](=O)[O-]": "",
    }  # fmt: skip
    (tmp_path / "a.smi").write_text("".join(f"{smiles} name\n" for smiles in lines))
    run(tmp_path / "a.smi", "--strain", "5")
    found = rows(tmp_path)
    assert [row["reason"] for row in found] == list(lines.values())
    assert [row["valid"] for row in found] == [str(not reason) for reason in lines.values()]
    assert {row["worst_bond"] for row in found} == {""} and {row["strain"] for row in found} == {""}
    assert set(figures(tmp_path)["rates"]) == {"valid", "unique", "valid_and_unique"}


def test_flat_files_are_judged_as_graphs(tmp_path, capsys):
    """Drawings that a vendor sells: no coordinates in space, no hydrogens."""
    from rdkit.Chem import rdDepictor

    text = ""
    for smiles in ("c1ccccc1C(=O)O", "CC[CH2]"):
        mol = Chem.MolFromSmiles(smiles)
        rdDepictor.Compute2DCoords(mol)
        text += Chem.MolToMolBlock(mol) + "$$$$\n"
    (tmp_path / "a.sdf").write_text(text.replace("2D", "3D"))
    run(tmp_path / "a.sdf", "--implicit")
    assert "only graphs were judged" in capsys.readouterr().out
    assert "plausible_geometry" not in figures(tmp_path)["rates"]
    assert rows(tmp_path)[0]["smiles"] == "O=C(O)c1ccccc1" and rows(tmp_path)[0]["valid"] == "True"


def test_a_flat_molecule_in_space_has_coordinates(sdf, tmp_path):
    """Planar or linear, with every hydrogen, and in the plane z = 0."""
    mol = Chem.MolFromMolBlock(sdf("C#C"), removeHs=False)
    conformer = mol.GetConformer()
    for i, x in enumerate((0, 1.2, -1.06, 2.26)):
        conformer.SetAtomPosition(i, (x, 0.0, 0.0))
    (tmp_path / "a.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    run(tmp_path / "a.sdf")
    assert figures(tmp_path)["rates"]["plausible_geometry"]["count"] == 1


def test_a_table_with_a_column_of_its_own(tmp_path):
    (tmp_path / "a.csv").write_text("id,Structure\n1,CCO\n2,OCC\n")
    run(tmp_path / "a.csv", "--column", "structure")
    assert [row["smiles"] for row in rows(tmp_path)] == ["CCO", "CCO"]
    assert figures(tmp_path)["rates"]["unique"]["count"] == 1


def test_all_of_the_reference_is_known_though_some_is_judged(sdf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "BESIDE", 2)
    (tmp_path / "a.sdf").write_text(sdf("CCO", "CCN", "CCF"))
    (tmp_path / "train.sdf").write_text(sdf("C", "CCO", "CC", "CCN", "CCC"))
    run(tmp_path / "a.sdf", "--reference", tmp_path / "train.sdf")
    found = figures(tmp_path)
    assert found["rates"]["novel"] == {"value": 0.33333, "count": 1, "of": 3, "what": "valid and unique"}
    assert found["reference"]["reference"]["rates"]["valid"]["of"] == 2
    assert [row["in_train"] for row in rows(tmp_path)] == ["True", "True", "False"]
    assert "tv_size_to_reference" in capsys.readouterr().out
    run(tmp_path / "a.sdf", "--reference", tmp_path / "a.sdf")
    assert figures(tmp_path)["rates"]["novel"]["count"] == 0


def test_the_rules_colour_the_drawings_only(sdf, tmp_path):
    from PIL import Image

    (tmp_path / "a.sdf").write_text(sdf("NC#N"))  # whose short C-N the old rule takes for a double bond
    pictures = {}
    for rules in ("strict", "edm", "perceived"):
        run(tmp_path / "a.sdf", "--rules", rules, "--out", tmp_path / rules)
        picture = Image.open(tmp_path / rules / "overview.png")
        pictures[rules] = dict((colour, n) for n, colour in picture.getcolors(1 << 20))
    red = {rules: colours.get((200, 62, 52), 0) > 300 for rules, colours in pictures.items()}
    assert red["edm"] and not red["strict"]
    assert (tmp_path / "strict" / "report.json").read_text() == (tmp_path / "edm" / "report.json").read_text()


@pytest.mark.parametrize(
    ("name", "text", "words", "match"),
    [
        ("a.sdf.gz", "not zipped", (), "a.sdf.gz: cannot be read"),
        ("a.sdf", "", (), "no molecules in it"),
        ("a.smi", "", (), "no molecules in it"),
        ("a.pdb", "ATOM", (), "neither SDF"),
        ("a.csv", "smile,x\nC,1\n", (), "no such column.*did you mean 'smile'"),
        ("a.smi", "C\n", ("--rules", "edm"), "--rules edm needs 3D coordinates"),
        ("a.smi", "C\n", ("--strain", "-1"), "--strain -1 is negative"),
        ("a.smi", "C\n", ("--reference", "none.sdf"), "none.sdf: no such file"),
        ("a.smi", "C\n", ("--out", "{}/a.smi"), "cannot write into"),
    ],
)
def test_mistakes_are_one_line(tmp_path, name, text, words, match):
    (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, DataError), match=match) as caught:
        run(tmp_path / name, *(word.format(tmp_path) for word in words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.csv").exists()


def test_long_files_show_how_far_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "MANY", 3)
    (tmp_path / "a.smi").write_text("C\nCC\nCCC\nCCCC\n")
    run(tmp_path / "a.smi")
    assert "molecule 4/4  100%" in capsys.readouterr().err


def test_the_module_loads_nothing_heavy():
    """It is imported whenever the command line starts."""
    code = (
        "import sys, suffuse_molecules.command as c; c.judge(['--help']);"
        "print([m for m in ('rdkit', 'numpy', 'torch', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]") and "usage: suffuse judge FILE" in done.stdout


def test_judging_needs_no_torch(sdf, tmp_path):
    (tmp_path / "a.sdf").write_text(sdf("CCO"))
    code = "import sys, suffuse_molecules.command as c; c.judge(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.sdf")], capture_output=True, check=True)
    assert rows(tmp_path)[0]["smiles"] == "CCO"


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
    found = rows(tmp_path / "out")
    assert [row["valid"] for row in found] == ["True", "False", "True"] and found[1]["reason"] == "broken record"
    assert found[0]["in_train"] == "True" and found[2]["duplicate_of"] == "0"
    assert (tmp_path / "out" / "overview.png").read_bytes()[:4] == b"\x89PNG"


def test_judge_of_smiles_has_no_geometry(tmp_path, capsys):
    (tmp_path / "a.smi").write_text("CCO\nnope\nc1ccccc1\n")
    run(tmp_path / "a.smi")
    report = figures(tmp_path)
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
    with pytest.raises(SuffuseError, match=match):
        run(*words)


def test_judge_is_a_command_of_suffuse():
    code = (
        "import sys; sys.argv = ['suffuse', 'judge', '--help']; from suffuse.cli import main; main(); "
        "assert 'rdkit' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: suffuse judge FILE" in done.stdout
