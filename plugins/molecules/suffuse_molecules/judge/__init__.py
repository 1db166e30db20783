"""Judge: which molecules are right, by three sets of rules that are never mixed.

``strict``     a chemist's: whole valences, nothing forgiven.
``edm``        "Equivariant Diffusion for Molecule Generation in 3D", Hoogeboom et al. 2022: bonds by a table of
               distances. For comparison with papers; it measures the precision of coordinates more than chemistry.
``perceived``  RDKit's own bonds, found from the coordinates, are those that were claimed.

Every rate has its denominator beside it, and what could not be judged counts as wrong, not as absent.
"""

from suffuse_molecules.judge.report import RULES, Report, judge_all
from suffuse_molecules.judge.strict import Verdict, strict

__all__ = ["RULES", "Report", "Verdict", "judge_all", "strict"]
