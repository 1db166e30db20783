"""Enumeration: every small molecule of C, N, O and F, in the manner of GDB.

Level k holds the molecules of k heavy atoms. Saturated trees are grown atom by atom; then hydrogens are taken away two
at a time, which raises the order of a bond or closes a ring, breadth first. Every connected graph of right valence is
reached so, since it has a spanning tree. Graphs are compared by canonical SMILES. Inside the search only what no later
step can undo is pruned; finished molecules then pass filters of stability. "Virtual Exploration of the Chemical
Universe up to 11 Atoms of C, N, O, F", Fink and Reymond 2007 (GDB-11), whose filters are a little tighter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

from rdkit import Chem, rdBase
from rdkit.Chem import rdChemReactions

__all__ = ["charged_variants", "enumerate_level", "grow_trees", "molecules", "reject_reason"]

VALENCE = {6: 4, 7: 3, 8: 2, 9: 1}

MOST_RINGS = 3
MOST_HETERO = 3
"""Longest run of connected atoms that are not carbon."""

_NEXT = {Chem.BondType.SINGLE: Chem.BondType.DOUBLE, Chem.BondType.DOUBLE: Chem.BondType.TRIPLE}
_NEVER = {(8, 8), (7, 9), (8, 9), (9, 9)}
"""Bonds between these elements."""

FILTERS: Mapping[str, str] = {
    "N-N or N-O without conjugation": ("[NX3;!$(N~[#6;^2]);!$(N~[#7;^2])]-[NX3,OX2;!$(*~[#6;^2]);!$(*~[#7;^2])]"),
    "hydroxylamine": "[OH]-[NX3;!$(N-C=[O,N])]",
    "three N or O in a row": "[N;!a]~[N,O;!a]~[N,O;!a]",
    "azo": "[#7;!a]=[#7;!a]",
    "nitrite": "[OX2]-[NX2]=[OX1]",
    "nitroso": "[NX2]=[OX1]",
    "hemiacetal": "[CX4]([OX2H])[OX2,NX3]",
    "aminal": "[CX4]([NX3;!H0;!$(N-C=[O,N])])[NX3,OX2]",
    "alpha-fluoro ether or amine": "[F]-[CX4]-[OX2,NX3]",
    "acyl fluoride": "[F]-C=[O,N]",
    "carbonic or carbamic acid": "[OX2H]-C(=O)-[OX2,NX3]",
    "enol": "[OX2H]-[C;!a]=[C,N;!a]",
    "imidic acid": "[OX2H]-[C;!a]=[N]",
    "enamine": "[NX3;!H0;!$(N-C=O)]-[C;!a]=[C;!a]",
    "ynol or ynamine": "[OX2,NX3]-C#C",
    "cyanate": "[OX2]-C#N",
    "fluoroalkyne": "F-C#C",
    "small aromatic ring": "[a;r3,r4]",
    "two pyrrole-type atoms in a row": "[n;X3,$([nH]),$([o])]:[n;X3]",
    "pyrrole-type N beside O": "[o]:[n;X3]",
    "cumulene": "*=*=*=*",
    "allene": "C=C=C",
    "ketene, carbodiimide or isocyanate": "[#6,#7]=C=[O,N]",
    "carbon dioxide": "O=C=O",
    "NH imine": "[NX2H]=[C;!$(C-[N,O])]",
    "orthoester": "[CX4]([!#6;!#1;!#9])([!#6;!#1;!#9])[!#6;!#1;!#9]",
    "C=N in a 4-ring": "[*;r4;^2;!a]=[#7;r4;!a]",
    "cyclobutadiene": "[#6;r4;^2]~1~[#6;r4;^2]~[#6;r4;^2]~[*;r4]1",
    "two hetero atoms in a row in a 4-ring": "[!#6;r4]-;@[!#6;r4]",
    "fused or spiro 3-ring": "[*;r3;R2]",
    "imidoyl fluoride": "[F]-[C;!a]=[N,O]",
}
"""SMARTS of what a finished molecule must not have."""

CHARGED: Mapping[str, str] = {
    "nitro": "[CX4,c:1]-[NX3;H2:2]>>[*:1]-[N+](=O)[O-]",
    "pyridine N-oxide": "[n;X2:1]([c:2])[c:3]>>[n+:1]([O-])([c:2])[c:3]",
    "amine N-oxide": "[NX3;H0:1]([CX4:2])([CX4:3])[CX4:4]>>[N+:1]([O-])([*:2])([*:3])[*:4]",
    "zwitterion": "([NX3;H2:1][CX4:2].[CX3:3](=[O:4])[OX2H:5])>>([NH3+:1][CX4:2].[C:3](=[O:4])[O-:5])",
}
"""Reactions that make formal charges, so that the field of charges is not constant."""

_QUERIES = {name: Chem.MolFromSmarts(smarts) for name, smarts in FILTERS.items()}
with rdBase.BlockLogs():  # it warns of the hydrogens that a reaction takes away
    _REACTIONS = [rdChemReactions.ReactionFromSmarts(smarts) for smarts in CHARGED.values()]

Layer = dict[str, Chem.RWMol]


def molecules(heavy: int, charged: bool = True) -> Iterator[str]:
    """Yield the SMILES of all molecules of at most `heavy` heavy atoms in a fixed order, charged ones last."""
    trees = grow_trees(heavy)
    found: list[str] = []
    for k in range(1, heavy + 1):
        kept, _ = enumerate_level(trees[k])
        found += sorted(kept)
        yield from sorted(kept)
    if charged:
        yield from charged_variants(found, heavy)


def grow_trees(most: int) -> dict[int, Layer]:
    """Return the saturated trees of every number of atoms up to `most`, by SMILES."""
    levels: dict[int, Layer] = {1: {}}
    for z in (6, 7, 8):
        mol = Chem.RWMol()
        mol.AddAtom(Chem.Atom(z))
        levels[1][_canonical(mol) or ""] = mol
    for k in range(2, most + 1):
        levels[k] = {}
        for parent in levels[k - 1].values():
            for child in _grown(parent):
                smiles = _canonical(child)
                if smiles is not None and smiles not in levels[k]:
                    levels[k][smiles] = child
    return levels


def _grown(parent: Chem.RWMol) -> Iterator[Chem.RWMol]:
    """Yield the molecules with one atom more."""
    done = set()
    ranks = _ranks(parent)
    for i, free in enumerate(_free(parent)):
        for z in VALENCE:
            if not free or (ranks[i], z) in done or _forbidden(parent.GetAtomWithIdx(i).GetAtomicNum(), z):
                continue
            done.add((ranks[i], z))
            child = Chem.RWMol(parent)
            child.AddBond(i, child.AddAtom(Chem.Atom(z)), Chem.BondType.SINGLE)
            if z == 6 or _hetero_run(child) <= MOST_HETERO:
                yield child


def enumerate_level(trees: Layer) -> tuple[list[str], Counter[str]]:
    """Return what is kept of all molecules that grow from `trees`, and how many were rejected for which reason."""
    kept: list[str] = []
    reasons: Counter[str] = Counter()
    layer = trees
    while layer:
        for smiles in layer:
            mol = Chem.MolFromSmiles(smiles)
            why = "unparsable" if mol is None else reject_reason(mol)
            if why is None:
                kept.append(smiles)
            else:
                reasons[why] += 1
        layer = _closed(layer)
    return kept, reasons


def _closed(layer: Layer) -> Layer:
    """Return the molecules with two hydrogens less."""
    found: Layer = {}
    for mol in layer.values():
        for child in _closures(mol):
            if not _rings_allowed(child):
                continue
            smiles = _canonical(child)
            if smiles is not None and smiles not in found:
                found[smiles] = child
    return found


def _closures(mol: Chem.RWMol) -> Iterator[Chem.RWMol]:
    count = mol.GetNumAtoms()
    free, rings = _free(mol), mol.GetNumBonds() - count + 1
    # Equal ranks mean equivalent bonds in trees and single rings only.
    ranks = _ranks(mol) if rings <= 1 else list(range(count))
    done = set()
    for i, j in itertools.combinations(range(count), 2):
        if not free[i] or not free[j]:
            continue
        bond = mol.GetBondBetweenAtoms(i, j)
        ends = [mol.GetAtomWithIdx(k).GetAtomicNum() for k in (i, j)]
        child = Chem.RWMol(mol)
        if bond is None:
            if rings >= MOST_RINGS or _forbidden(*ends):
                continue
            child.AddBond(i, j, Chem.BondType.SINGLE)
            if 6 not in ends and _hetero_run(child) > MOST_HETERO:
                continue
        else:
            place = (min(ranks[i], ranks[j]), max(ranks[i], ranks[j]))
            if place in done or bond.GetBondType() not in _NEXT:
                continue
            done.add(place)
            child.GetBondBetweenAtoms(i, j).SetBondType(_NEXT[bond.GetBondType()])
        yield child


def reject_reason(mol: Chem.Mol) -> str | None:
    """Return the first filter that a sanitised molecule fails, or None."""
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if 6 not in elements:
        return "no carbon"
    if sum(z in (7, 8) for z in elements) > max(3, elements.count(6) + 1):
        return "too many N and O"
    for name, query in _QUERIES.items():
        if mol.HasSubstructMatch(query):
            return name
    rings = [set(ring) for ring in mol.GetRingInfo().AtomRings()]
    if sum(len(ring) == 3 for ring in rings) > 1:
        return "two 3-rings"
    if any(_bredt(mol, one & other) for one, other in itertools.combinations(rings, 2)):
        return "double bond at a bridgehead"
    return None


def _bredt(mol: Chem.Mol, shared: set[int]) -> bool:
    """Return whether a bridged system, whose rings share more than a bond, has a double bond at a bridgehead."""
    if len(shared) <= 2:
        return False
    for i in shared:
        bonds = [bond for bond in mol.GetAtomWithIdx(i).GetBonds() if bond.IsInRing()]
        if len(bonds) >= 3 and any(bond.GetBondType() == Chem.BondType.DOUBLE for bond in bonds):
            return True
    return False


def charged_variants(smiles: list[str], most: int) -> list[str]:
    """Return the charged forms of neutral molecules, with at most `most` heavy atoms and no net charge, sorted."""
    found = set()
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        for reaction in _REACTIONS:
            for (product,) in reaction.RunReactants((mol,)):
                if Chem.SanitizeMol(product, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
                    continue
                if product.GetNumHeavyAtoms() <= most and Chem.GetFormalCharge(product) == 0:
                    found.add(Chem.MolToSmiles(product))
    return sorted(found)


# The graph.


def _canonical(mol: Chem.Mol) -> str | None:
    copy = Chem.Mol(mol)
    if Chem.SanitizeMol(copy, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    text: str = Chem.MolToSmiles(copy)
    return text


def _ranks(mol: Chem.Mol) -> list[int]:
    copy = Chem.Mol(mol)
    if Chem.SanitizeMol(copy, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return list(range(mol.GetNumAtoms()))
    return list(Chem.CanonicalRankAtoms(copy, breakTies=False))


def _free(mol: Chem.Mol) -> list[int]:
    """Return how many hydrogens each atom of a Kekulé graph has."""
    return [
        VALENCE[atom.GetAtomicNum()] - sum(int(bond.GetBondTypeAsDouble()) for bond in atom.GetBonds())
        for atom in mol.GetAtoms()
    ]


def _forbidden(one: int, other: int) -> bool:
    return (min(one, other), max(one, other)) in _NEVER


def _hetero_run(mol: Chem.Mol) -> int:
    """Return the size of the largest connected part without carbon."""
    left = {atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() != 6}
    longest = 0
    while left:
        stack, size = [left.pop()], 0
        while stack:
            size += 1
            for near in mol.GetAtomWithIdx(stack.pop()).GetNeighbors():
                if near.GetIdx() in left:
                    left.remove(near.GetIdx())
                    stack.append(near.GetIdx())
        longest = max(longest, size)
    return longest


def _rings_allowed(mol: Chem.RWMol) -> bool:
    """Return whether the rings of a Kekulé graph may stay: what is refused here no later step can mend.

    One 3-ring at most, saturated and without two hetero atoms in a row; no triple bond and no allene in a ring.
    """
    mol.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(mol)
    info = mol.GetRingInfo()
    three = {tuple(sorted(ring)) for ring in info.BondRings() if len(ring) == 3}
    if len(three) > 1:
        return False
    small = set()
    for index in itertools.chain.from_iterable(three):
        bond = mol.GetBondWithIdx(index)
        small |= {bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()}
        if 6 not in (bond.GetBeginAtom().GetAtomicNum(), bond.GetEndAtom().GetAtomicNum()):
            return False
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.SINGLE:
            continue
        if bond.GetBeginAtomIdx() in small or bond.GetEndAtomIdx() in small:
            return False
        if bond.GetBondType() == Chem.BondType.TRIPLE and info.NumBondRings(bond.GetIdx()):
            return False
    return not any(
        sum(bond.GetBondType() == Chem.BondType.DOUBLE for bond in atom.GetBonds()) == 2
        and info.NumAtomRings(atom.GetIdx())
        for atom in mol.GetAtoms()
    )
