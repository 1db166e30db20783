"""Grammar: the sounds that can be described in a sentence and rendered from it.

Four kinds: a note (timbre, envelope, pitch), a triad (quality, envelope, root), a slide (timbre, direction, span,
start) and a drum (instrument, tempo, dynamics). A `Sound` is one combination of attributes and `caption` its sentence.
Combinations whose caption's hash falls into one eighth are held out: no training item has them, so that samples for
them show whether attributes were learned or sentences.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from hashlib import blake2b

__all__ = [
    "BPM",
    "CHORDS",
    "DRUMS",
    "KINDS",
    "NOTES",
    "ROOTS",
    "SPANS",
    "Sound",
    "by_caption",
    "frequency",
    "held_out",
    "sounds",
]

NOTES = (*(f"{name}{octave}" for octave in (3, 4) for name in "CDEFGAB"), "C5")
TIMBRES = {"sine": "sine wave", "square": "square wave", "sawtooth": "sawtooth wave", "organ": "organ"}
ENVELOPES = ("plucked", "sustained", "swelling")
CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7), "diminished": (0, 3, 6)}
ROOTS = NOTES[7:14]
STARTS = {
    way: (*(f"{name}{octave}" for name in "CDEFGAB"), f"C{octave + 1}") for way, octave in (("up", 3), ("down", 5))
}
SPANS = {"one octave": 1, "two octaves": 2}
DRUMS = ("kick drum", "snare drum", "hi-hat")
BPM = (120, 180, 240, 360)
DYNAMICS = ("at an even level", "getting louder", "getting softer")
KINDS = {"note": 0.35, "chord": 0.2, "slide": 0.25, "drum": 0.2}
"""Kinds of sounds and the share of items of each."""

_SEMITONES = {"C": -9, "D": -7, "E": -5, "F": -4, "G": -2, "A": 0, "B": 2}


def frequency(note: str) -> float:
    """Return the frequency of a note such as ``A4`` in Hz, equal temperament, A4 = 440."""
    return float(440 * 2 ** ((_SEMITONES[note[0]] + 12 * (int(note[1:]) - 4)) / 12))


@dataclass(frozen=True)
class Sound:
    """One combination of attributes.

    Arguments:
        kind: ``note``, ``chord``, ``slide`` or ``drum``.
        values: The value of each attribute, in the order of `names`.
    """

    kind: str
    values: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the attributes."""
        return {
            "note": ("envelope", "timbre", "note"),
            "chord": ("envelope", "quality", "note"),
            "slide": ("timbre", "direction", "span", "note"),
            "drum": ("instrument", "tempo", "dynamics"),
        }[self.kind]

    def __getitem__(self, name: str) -> str:
        return self.values[self.names.index(name)]

    @property
    def caption(self) -> str:
        """The sentence that describes it."""
        v = self.values
        if self.kind == "note":
            return f"a {v[0]} {TIMBRES[v[1]]} playing {v[2]}"
        if self.kind == "chord":
            return f"a {v[0]} {v[1]} chord on {v[2]}"
        if self.kind == "slide":
            return f"a {TIMBRES[v[0]]} sliding {v[1]} {v[2]} from {v[3]}"
        return f"a {v[0]} at {v[1]} beats per minute {v[2]}"


@functools.cache
def sounds() -> tuple[Sound, ...]:
    """Return every combination, ordered by kind."""
    found = [Sound("note", v) for v in itertools.product(ENVELOPES, TIMBRES, NOTES)]
    found += [Sound("chord", v) for v in itertools.product(ENVELOPES, CHORDS, ROOTS)]
    for way, starts in STARTS.items():
        found += [Sound("slide", v) for v in itertools.product(("sine", "square", "sawtooth"), (way,), SPANS, starts)]
    found += [Sound("drum", v) for v in itertools.product(DRUMS, map(str, BPM), DYNAMICS)]
    return tuple(found)


@functools.cache
def by_caption() -> dict[str, Sound]:
    """Return every combination by its caption."""
    return {sound.caption: sound for sound in sounds()}


def held_out(sound: Sound) -> bool:
    """Return whether no training item has this combination."""
    return blake2b(sound.caption.encode(), digest_size=4).digest()[0] < 32
