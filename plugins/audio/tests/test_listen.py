"""Analysis: it hears what is rendered, in noise too, and does not hear what is not there."""

from __future__ import annotations

import numpy as np
import pytest
from suffuse_audio.grammar import KINDS, NOTES, Sound, by_caption, frequency, sounds
from suffuse_audio.listen import listen, pitch
from suffuse_audio.synth import HARMONICS, render


def test_frequencies():
    assert frequency("A4") == 440 and frequency("C4") == pytest.approx(261.6256, abs=1e-3)
    assert frequency("C5") == pytest.approx(2 * frequency("C4")) and len(NOTES) == 15


def test_captions_name_combinations():
    assert len(by_caption()) == len(sounds()) > 300
    assert Sound("note", ("plucked", "square", "A4")).caption == "a plucked square wave playing A4"
    assert sum(KINDS.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sound_is_heard(kind: str):
    of = [s for s in sounds() if s.kind == kind]
    heard = [listen(render(s, 7 * i), s) for i, s in enumerate(of)]
    wrong = [(s.caption, h.values) for s, h in zip(of, heard, strict=True) if h.values != s.values]
    assert not wrong and np.mean([h.clean for h in heard]) > 0.89


@pytest.mark.parametrize(("kind", "least"), [("note", 0.97), ("chord", 0.97), ("slide", 0.85), ("drum", 0.85)])
def test_some_noise_is_no_matter(kind: str, least: float):
    random, of = np.random.default_rng(0), [s for s in sounds() if s.kind == kind]
    right, clean = [], []
    for i, s in enumerate(of):
        y = render(s, i)
        noisy = y + 0.02 * random.standard_normal(len(y))
        heard = listen(noisy, s)
        right.append(heard.values == s.values)
        clean.append(listen(y, s).clean - heard.clean)
    assert np.mean(right) >= least and np.mean(clean) > 0.001


def test_what_is_not_there_is_not_heard():
    random = np.random.default_rng(1)
    for kind in KINDS:
        of = [s for s in sounds() if s.kind == kind]
        noise = [listen(0.3 * random.standard_normal(8192), s).values == s.values for s in of]
        assert np.mean(noise) < 0.06
        swapped = [
            listen(render(s, i), t).values == t.values for i, (s, t) in enumerate(zip(of, of[1:] + of[:1], strict=True))
        ]
        assert np.mean(swapped) == 0
    silent = listen(np.zeros(8192), sounds()[0])
    assert silent.values[0] == "silence" and silent.clean == 0
    assert listen(np.full(8192, np.nan), sounds()[0]).values[0] == "silence"


def test_cents():
    t = np.arange(8192) / 8000
    for cents in (-30, 0, 20):
        y = np.sin(2 * np.pi * 440 * 2 ** (cents / 1200) * t)
        heard = listen(y, Sound("note", ("sustained", "sine", "A4")))
        assert heard.values == ("sustained", "sine", "A4") and heard.cents == pytest.approx(cents, abs=4)


@pytest.mark.parametrize("timbre", HARMONICS)
def test_no_octave_errors(timbre: str):
    for note in NOTES:
        y = render(Sound("note", ("sustained", timbre, note)), 3).astype(float)
        assert pitch(y, 8000, 115, 600) == pytest.approx(frequency(note), rel=0.01)


def test_rendering_is_a_function_of_the_seed():
    for sound in sounds()[::40]:
        assert np.array_equal(render(sound, 3), render(sound, 3)) and not np.array_equal(
            render(sound, 3), render(sound, 4)
        )
        y = render(sound, 5)
        assert y.dtype == np.float32 and len(y) == 8192 and 0.6 <= np.abs(y).max() <= 0.9
