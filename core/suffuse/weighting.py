r"""Weighting: prompts in which some words count more than others, as ``a (red:1.3) cat``.

``(text:w)`` gives its text the weight w; inside of one another weights multiply. Brackets without a weight stand for
themselves, and so does a bracket behind a backslash. The embedding z_i of a token of weight w becomes

    z_i' = e_i + w (z_i - e_i)

with e the embedding of the empty prompt: weight 1 changes nothing, weight 0 forgets the word, and more than 1 goes on
in the direction in which the word led. A token that overlaps a weighted stretch has its weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from suffuse.errors import ConfigError

__all__ = ["MOST", "Weighted", "weighted"]

MOST = 10.0
"""Largest weight."""
_END = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")


@dataclass(frozen=True)
class Weighted:
    """A prompt without its marks.

    Arguments:
        text: What is left.
        spans: Start, end and weight of stretches of `text`, in order, where the weight is not 1.
    """

    text: str
    spans: tuple[tuple[int, int, float], ...] = ()

    def weight(self, start: int, end: int) -> float:
        """Return the weight of a token from `start` to `end`: that of the stretch it overlaps most."""
        most, found = 0, 1.0
        for low, high, value in self.spans:
            shared = min(end, high) - max(start, low)
            if shared > most:
                most, found = shared, value
        return found


def weighted(prompt: str) -> Weighted:
    """Return a prompt's text and weights.

    Raises:
        ConfigError: For a weight outside [0, 10].
    """
    text: list[str] = []
    values: list[float] = []

    place = 0
    while place < len(prompt):
        sign = prompt[place]
        if sign == "\\" and place + 1 < len(prompt) and prompt[place + 1] in "()\\":
            text.append(prompt[place + 1])
            values.append(1.0)
            place += 2
            continue
        if sign == "(" and (end := _closing(prompt, place)) is not None:
            last, weight = end
            if not 0 <= weight <= MOST:
                raise ConfigError(f"condition.text: the weight {weight:g} in {prompt!r} is not in [0, {MOST:g}]")
            inside = weighted(prompt[place + 1 : last])
            text += inside.text
            values += [weight * inside.weight(at, at + 1) for at in range(len(inside.text))]
            place = prompt.index(")", last) + 1
            continue
        text.append(sign)
        values.append(1.0)
        place += 1
    spans: list[tuple[int, int, float]] = []
    for at, value in enumerate(values):
        if value == 1.0:
            continue
        if spans and spans[-1][1] == at and spans[-1][2] == value:
            spans[-1] = (spans[-1][0], at + 1, value)
        else:
            spans.append((at, at + 1, value))
    return Weighted("".join(text), tuple(spans))


def _closing(prompt: str, start: int) -> tuple[int, float] | None:
    """Return where the colon of a bracket's weight is, and the weight; None for a bracket without one."""
    depth, place = 0, start
    while place < len(prompt):
        sign = prompt[place]
        if sign == "\\":
            place += 2
            continue
        if sign == "(":
            depth += 1
        elif sign == ")":
            depth -= 1
            if depth == 0:
                return None
        elif sign == ":" and depth == 1 and (match := _END.match(prompt, place)):
            return place, float(match[1])
        place += 1
    return None
