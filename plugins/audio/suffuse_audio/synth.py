"""Synth: renders a described sound; what the description leaves open is a function of a seed.

Open are detuning (up to 8 cents), phases, level, decay times and noise. Harmonic tones are sums of the harmonics
a_k sin(k phi(t)) below 0.47 of the sample rate: sine, square (odd k, a_k = 1/k), sawtooth (a_k = 1/k), organ
(k = 1, 2, 4 and 8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suffuse_audio.grammar import CHORDS, SPANS, Sound, frequency

__all__ = ["HARMONICS", "render"]

Wave = NDArray[np.float32]
_Float = NDArray[np.float64]

HARMONICS: dict[str, dict[int, float]] = {
    "sine": {1: 1.0},
    "square": {k: 1 / k for k in range(1, 20, 2)},
    "sawtooth": {k: 1 / k for k in range(1, 16)},
    "organ": {1: 1.0, 2: 0.7, 4: 0.5, 8: 0.25},
}


def render(sound: Sound, seed: int, rate: int = 8000, samples: int = 8192) -> Wave:
    """Return the sound, float32 (samples,) with a peak between 0.6 and 0.9.

    Arguments:
        sound: What is heard.
        seed: Decides everything that `sound` leaves open.
        rate: Samples per second.
        samples: Length.
    """
    random = np.random.default_rng([seed, 20_241])
    t = np.arange(samples) / rate
    if sound.kind == "drum":
        y = _drums(sound, random, rate, t)
    elif sound.kind == "slide":
        sign = 1 if sound["direction"] == "up" else -1
        octaves = sign * SPANS[sound["span"]] * t / t[-1]
        y = _tone(sound["timbre"], _detuned(sound["note"], random) * 2.0**octaves, random, rate)
        y = y * _envelope("sustained", t, random)
    else:
        if sound.kind == "note":
            y = _tone(sound["timbre"], np.full(samples, _detuned(sound["note"], random)), random, rate)
        else:
            root = _detuned(sound["note"], random)
            y = np.zeros(samples)
            for semitones in CHORDS[sound["quality"]]:
                y = y + _tone("sine", np.full(samples, root * 2 ** (semitones / 12)), random, rate)
        y = y * _envelope(sound["envelope"], t, random)
    return (y / np.abs(y).max() * random.uniform(0.6, 0.9)).astype(np.float32)


def _detuned(note: str, random: np.random.Generator) -> float:
    return frequency(note) * float(2 ** (random.uniform(-8, 8) / 1200))


def _tone(timbre: str, f: _Float, random: np.random.Generator, rate: int) -> _Float:
    """Return a harmonic tone whose frequency follows `f`."""
    # One phase, k times as far in the k-th harmonic: the waveform keeps its shape and starts somewhere in it.
    turn = np.exp(1j * (2 * np.pi * np.cumsum(f) / rate + random.uniform(0, 2 * np.pi)))
    power, y = np.ones_like(turn), np.zeros(len(f))
    amplitudes = HARMONICS[timbre]
    for k in range(1, max(amplitudes) + 1):
        # Powers of one rotation: a multiplication where a sine would cost ten.
        power = power * turn
        if k in amplitudes:
            audible = k * f < 0.47 * rate
            if not audible.any():
                break
            y += amplitudes[k] * audible * power.imag
    return y


def _envelope(name: str, t: _Float, random: np.random.Generator) -> _Float:
    attack, end = np.minimum(1, t / 0.005), np.clip((t[-1] - t) / 0.03, 0, 1)
    if name == "plucked":
        shape: _Float = np.exp(-t / (t[-1] * random.uniform(0.16, 0.22)))
    elif name == "swelling":
        shape = (t / t[-1]) ** random.uniform(1.4, 1.8)
    else:
        shape = np.ones_like(t)
    return shape * attack * end


def _drums(sound: Sound, random: np.random.Generator, rate: int, t: _Float) -> _Float:
    """Return hits at a steady tempo, the first at 10 ms."""
    interval = 60 / int(sound["tempo"])
    times = np.arange(0.01, t[-1] - 0.05, interval)
    place = np.linspace(0, 1, len(times))
    level = {"at an even level": np.ones_like(place), "getting louder": 10 ** (place - 1),
             "getting softer": 10 ** -place}[sound["dynamics"]]  # fmt: skip
    y = np.zeros(len(t))
    for start, gain in zip(times, level, strict=True):
        first = round(start * rate)
        after = t[: len(t) - first]
        y[first:] += gain * _hit(sound["instrument"], after, random, rate)
    return y


def _hit(instrument: str, t: _Float, random: np.random.Generator, rate: int) -> _Float:
    attack = np.minimum(1, t / 0.001)
    if instrument == "kick drum":
        f = 50 + 110 * np.exp(-t / 0.02)
        return attack * np.sin(2 * np.pi * np.cumsum(f) / rate) * np.exp(-t / 0.05)
    noise = random.standard_normal(len(t))
    if instrument == "snare drum":
        body = 0.6 * np.sin(2 * np.pi * 185 * t + random.uniform(0, 2 * np.pi))
        return attack * (0.5 * noise + body) * np.exp(-t / 0.03)
    high = np.diff(noise, n=2, prepend=0, append=0)[: len(t)]  # twice differenced: a high pass
    return attack * high * np.exp(-t / 0.015)
