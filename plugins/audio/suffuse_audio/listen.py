"""Listen: reads the attributes of a described sound back from its samples, by analysis alone, with no network.

Pitch by harmonic summation ("Measurement of pitch by subharmonic summation", Hermes 1988), timbre by the power of the
second and third harmonic, envelopes by the energy of the parts, chords by the fundamentals that all must be there,
drums by onsets in a 4 ms envelope and by bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse_audio.grammar import BPM, CHORDS, NOTES, ROOTS, SPANS, STARTS, Sound, frequency

__all__ = ["Heard", "listen", "pitch"]

_Float = NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """What was heard.

    Arguments:
        values: A value for every attribute that was listened for.
        cents: Distance from the nearest note in cents; NaN for drums.
        clean: Share of the energy that belongs to the sound: near its harmonics; of drums what is not between hits.
    """

    values: tuple[str, ...]
    cents: float
    clean: float


def listen(y: NDArray[np.floating[Any]], sound: Sound, rate: int = 8000) -> Heard:
    """Return what is heard when one listens for the attributes of `sound`'s kind.

    Arguments:
        y: Samples of about a second, shape (N,).
        sound: Says what kind of sound to listen for; its values are not used.
        rate: Samples per second.
    """
    x: _Float = np.nan_to_num(np.asarray(y, dtype=np.float64))
    if np.abs(x).max() < 1e-4:
        return Heard(("silence",) * len(sound.names), float("nan"), 0.0)
    return {"note": _note, "chord": _chord, "slide": _slide, "drum": _drum}[sound.kind](x, rate)


def pitch(y: _Float, rate: int, low: float, high: float) -> float:
    """Return the fundamental frequency in Hz between `low` and `high` by summed harmonics."""
    power, at = _spectrum(y, rate)
    candidates = np.geomspace(low, high, 1600)
    total = np.zeros(len(candidates))
    for k in range(1, 6):
        total += np.interp(candidates * k, at, np.sqrt(power), right=0) * 0.8 ** (k - 1)
    # A candidate an octave too low finds every harmonic, but nothing between them.
    odd = np.interp(candidates, at, np.sqrt(power))
    best = int(np.argmax(total * np.sqrt(odd + 0.02 * odd.max())))
    return float(candidates[best])


def _spectrum(y: _Float, rate: int) -> tuple[_Float, _Float]:
    size = 1 << 15
    power = np.asarray(np.abs(np.fft.rfft(y * np.hanning(len(y)), size)) ** 2, dtype=np.float64)
    return power, np.asarray(np.fft.rfftfreq(size, 1 / rate), dtype=np.float64)


def _near(power: _Float, at: _Float, f: float, width: float) -> float:
    """Return the largest power within a share `width` of f."""
    return float(np.max(np.interp(np.linspace(1 - width, 1 + width, 25) * f, at, power)))


def _timbre(power: _Float, at: _Float, f: float, width: float = 0.03) -> str:
    first, second, third = (_near(power, at, f * k, width) for k in (1, 2, 3))
    if second < 0.04 * first:
        return "sine" if third < 0.02 * first else "square"
    return "sawtooth" if third > 0.02 * first else "organ"


def _envelope(y: _Float) -> str:
    parts = [float((part**2).mean()) for part in np.array_split(y, 8)]
    early, late = parts[0] + parts[1], parts[5] + parts[6]
    if late < 0.15 * early:
        return "plucked"
    return "swelling" if late > 4 * early else "sustained"


def _note(y: _Float, rate: int) -> Heard:
    envelope = _envelope(y)
    part = {"plucked": y[: len(y) // 2], "swelling": y[len(y) // 2 :], "sustained": y}[envelope]
    f = pitch(part, rate, 115, 600)
    name, cents = _named(f, NOTES)
    power, at = _spectrum(part, rate)
    harmonic = _harmonic(power, at, f)
    return Heard((envelope, _timbre(power, at, f), name), cents, harmonic)


def _named(f: float, notes: tuple[str, ...]) -> tuple[str, float]:
    name = min(notes, key=lambda note: abs(np.log2(frequency(note) / f)))
    return name, float(1200 * np.log2(f / frequency(name)))


def _harmonic(power: _Float, at: _Float, f: float) -> float:
    """Return the share of the power within 4 % of a harmonic."""
    k = np.maximum(np.round(at / f), 1)
    return float(power[np.abs(at - k * f) < 0.04 * f * np.minimum(k, 4)].sum() / power.sum())


def _chord(y: _Float, rate: int) -> Heard:
    envelope = _envelope(y)
    power, at = _spectrum(y[: len(y) // 2] if envelope == "plucked" else y, rate)
    best, found, cents = -np.inf, ("", ""), 0.0
    for quality, steps in CHORDS.items():
        for root in ROOTS:
            parts = [_near(power, at, frequency(root) * 2 ** (step / 12), 0.012) for step in steps]
            # All three must be there, and nothing else: the geometric mean against the whole.
            score = float(np.log(np.array(parts) + 1e-9 * power.max()).sum())
            if score > best:
                best, found = score, (quality, root)
    lowest = frequency(found[1])
    grid = np.linspace(0.97, 1.03, 121)
    tones = [lowest * 2 ** (step / 12) for step in CHORDS[found[0]]]
    tuned = np.sum([np.interp(grid * tone, at, power) for tone in tones], axis=0)
    cents = float(1200 * np.log2(grid[int(np.argmax(tuned))]))
    inside = np.zeros(len(at), dtype=bool)
    for tone in tones:
        inside |= np.abs(at / tone - 1) < 0.03
    return Heard((envelope, *found), cents, float(power[inside].sum() / power.sum()))


def _slide(y: _Float, rate: int) -> Heard:
    size = rate // 10
    places = np.array([0.12, 0.3, 0.5, 0.7, 0.88])
    tracks, timbres, clean = [], [], []
    for place in places:
        first = round(place * len(y)) - size // 2
        part = y[first : first + size]
        # What a slide passes through within the window is smeared, so harmonics are looked for in a wide band.
        f = pitch(part, rate, 120, 2400)
        power, at = _spectrum(part, rate)
        tracks.append(np.log2(f))
        if f < 0.3 * rate / 2:
            timbres.append(_timbre(power, at, f, 0.09))
        clean.append(_harmonic(power, at, f))
    slope, start = np.polyfit(places, np.array(tracks), 1)
    direction = "up" if slope > 0 else "down"
    span = min(SPANS, key=lambda name: abs(SPANS[name] - abs(slope)))
    note, cents = _named(2.0**start, STARTS[direction])
    straight = np.abs(np.array(tracks) - (start + slope * places)).max() < 0.15
    timbre = max(set(timbres), key=timbres.count) if timbres else "none"
    return Heard((timbre, direction if straight else "wandering", span, note), cents, float(np.mean(clean)))


def _drum(y: _Float, rate: int) -> Heard:
    hop = rate // 250
    level = np.sqrt((y[: len(y) // hop * hop].reshape(-1, hop) ** 2).mean(1))
    smooth = np.convolve(level, np.ones(3) / 3, mode="same")
    found, scores = str(BPM[0]), {}
    for bpm in BPM:
        step, first = 60 / bpm * 250, 0.01 * 250
        hits = np.arange(first, len(smooth) - 12, step)
        peaks = np.array([smooth[max(0, round(h) - 2) : round(h) + 6].max() for h in hits])
        before = np.array([smooth[max(0, round(h) - 6) : max(1, round(h) - 2)].mean() for h in hits])
        between = np.concatenate([smooth[round(h + 0.55 * step) : round(h + 0.85 * step)] for h in hits])
        rises = np.mean(peaks > 2.5 * before + 1e-6)
        scores[str(bpm)] = float(rises - 2 * _hits_between(smooth, hits, step) - 0.2 * between.mean() / peaks.mean())
        if scores[str(bpm)] >= scores[found]:
            found = str(bpm)
    step = 60 / int(found) * 250
    hits = np.arange(2.5, len(smooth) - 12, step)
    peaks = np.array([smooth[max(0, round(h) - 2) : round(h) + 6].max() for h in hits])
    slope = 20 * np.log10((peaks[-1] + 1e-6) / (peaks[0] + 1e-6))
    dynamics = "getting louder" if slope > 7 else "getting softer" if slope < -7 else "at an even level"
    power, at = _spectrum(y, rate)
    total = power.sum()
    low, high = power[at < 140].sum() / total, power[at > 2200].sum() / total
    instrument = "kick drum" if low > 0.5 else "hi-hat" if high > 0.55 else "snare drum"
    quiet = np.concatenate([smooth[round(h + 0.85 * step) : round(h + 0.95 * step)] for h in hits[:-1]])
    return Heard((instrument, found, dynamics), float("nan"), float(1 - quiet.mean() / peaks.mean()))


def _hits_between(smooth: _Float, hits: _Float, step: float) -> float:
    """Return the share of the gaps in which something rises to a third of the hit before."""
    found = []
    for h in hits:
        gap = smooth[round(h + 0.3 * step) : round(h + 0.9 * step)]
        peak = smooth[max(0, round(h) - 2) : round(h) + 6].max()
        if len(gap) > 3:
            jump = np.maximum.accumulate(gap[::-1])[::-1] - np.minimum.accumulate(gap)
            found.append(float(jump.max() > 0.33 * peak))
    return float(np.mean(found)) if found else 0.0
