"""Grammar: what the embedded set can hold, as words: one solid of some proportion, or two in a relation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

from suffuse_shapes.solids import SOLIDS

__all__ = ["COLOURS", "FORMS", "PALETTE", "RELATIONS", "Part", "Scene", "every", "held_out", "parse"]

FORMS = ("tall", "plain", "flat")
"""Proportions; plain ones go without saying."""
PALETTE = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.65, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.95, 0.8, 0.15),
}
COLOURS = tuple(PALETTE)
RELATIONS = ("on", "under", "beside")


@dataclass(frozen=True)
class Part:
    """One solid of one colour; `form` is its proportion."""

    solid: str
    colour: str
    form: str = "plain"

    def __str__(self) -> str:
        return " ".join(["a", *[self.form] * (self.form != "plain"), self.colour, self.solid])


@dataclass(frozen=True)
class Scene:
    """One part, or two and how the first stands to the second."""

    first: Part
    relation: str = ""
    second: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order they are named."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def caption(self) -> str:
        """The scene in words."""
        return str(self.first) if self.second is None else f"{self.first} {self.relation} {self.second}"


def every(forms: tuple[str, ...] = FORMS) -> tuple[list[Scene], list[Scene]]:
    """Return all scenes of one part, and all of two: plain solids of different colours."""
    singles = [Scene(Part(s, c, f)) for s in SOLIDS for f in forms for c in COLOURS]
    plain = [Part(s, c) for s in SOLIDS for c in COLOURS]
    pairs = [Scene(a, r, b) for a in plain for r in RELATIONS for b in plain if a.colour != b.colour]
    return singles, pairs


def held_out(scene: Scene, share: int = 8) -> bool:
    """Return whether a combination is kept from training: one in `share`, by the hash of its caption."""
    return blake2b(scene.caption.encode(), digest_size=4).digest()[0] % share == 0


_PART = rf"an? (?:(tall|flat) )?({'|'.join(COLOURS)}) ({'|'.join(SOLIDS)})"
_SCENE = re.compile(rf"{_PART}(?: ({'|'.join(RELATIONS)}) {_PART})?")


def parse(caption: str) -> Scene | None:
    """Return the scene that a caption describes, or None when it is not of this grammar."""
    found = _SCENE.fullmatch(caption.strip().lower())
    if found is None:
        return None
    form, colour, solid, relation, form2, colour2, solid2 = found.groups()
    first = Part(solid, colour, form or "plain")
    return Scene(first, relation, Part(solid2, colour2, form2 or "plain")) if relation else Scene(first)
