"""Which token comes next: the likeliest one, or one drawn from what the model thinks likely."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeexport.errors import DataError

# Beyond it a temperature makes all tokens alike, and a penalty takes all away that were said; float32 would overflow.
MOST = 1000
_NUMBER, _WHOLE = (int, float, np.number), (int, np.integer)
# Field → whether a value can be, and what to say of one that can't.
WHAT_FITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "temperature": (lambda value: isinstance(value, _NUMBER) and 0 <= value <= MOST, f"it is from 0 to {MOST:,}; 0 takes the likeliest token"),
    "top_k": (lambda value: isinstance(value, _WHOLE) and value >= 0, "it is a number of tokens; 0 stands for all"),
    "top_p": (lambda value: isinstance(value, _NUMBER) and 0 < value <= 1, "it is more than 0 and at most 1"),
    "repetition_penalty": (lambda value: isinstance(value, _NUMBER) and 1 / MOST <= value <= MOST,
                           f"it is from {1 / MOST:g} to {MOST:,}; 1 stands for none"),
    "seed": (lambda value: value is None or (isinstance(value, _WHOLE) and value >= 0), "it is a whole number, 0 or more"),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    The order of the steps, and what each does, is that of Transformers' generation: penalty, temperature, top-k, top-p.

    Attributes:
        temperature: what logits are divided by; 0 takes the likeliest token, whatever the rest says.
        top_k: only so many of the likeliest tokens are drawn from; 0 for all.
        top_p: only the likeliest tokens that together have this probability are; 1 for all.
        repetition_penalty: what the logit of a token that came before is divided by, or where it is negative multiplied with. 1 for none.
            Source: Keskar et al. 2019, CTRL, section 4.1.
        seed: the same seed draws the same tokens; None draws others each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            DataError: one can't be.
        """
        for name, (fits, why) in WHAT_FITS.items():
            value = getattr(self, name)
            if not fits(value):
                raise DataError(f"{name} can't be {value}.", why=why)


@dataclass
class Sampler:
    """Chooses the tokens of one text.

    Attributes:
        sampling: how.
    """

    sampling: Sampling
    _random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Start the sequence of random numbers."""
        self._random = np.random.default_rng(self.sampling.seed)

    def choose(self, logits: np.ndarray, before: Iterable[int]) -> int:
        """The next token.

        Args:
            logits: float32 [vocabulary].
            before: the tokens that came before, prompt included; only the penalty asks for them.
        """
        if self.sampling.repetition_penalty != 1.0:
            logits = penalized(logits, before, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        below = logits.astype(np.float64) - float(logits.max())  # the likeliest is at 0, however low the temperature is
        with np.errstate(over="ignore"):
            cooled = below / self.sampling.temperature
        tokens, probabilities = likely(cooled, self.sampling.top_k, self.sampling.top_p)
        return int(tokens[np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right").clip(max=len(tokens) - 1)])


def penalized(logits: np.ndarray, before: Iterable[int], penalty: float) -> np.ndarray:
    """The logits with those of the tokens that came before made smaller."""
    tokens = np.unique(np.fromiter(before, np.int64))
    logits = logits.copy()
    found = logits[tokens]
    logits[tokens] = np.where(found < 0, found * penalty, found / penalty)
    return logits


def likely(logits: np.ndarray, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn, likeliest first, and their probabilities, which come to 1.

    At least one token is left, however small `top_p` is.
    """
    count = min(top_k, len(logits)) if top_k else len(logits)
    # Sorting a whole vocabulary costs as much as a layer; of a few the others need no order.
    tokens = np.argpartition(-logits, count - 1)[:count] if count < len(logits) else np.arange(len(logits))
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    weights = np.exp(logits[tokens].astype(np.float64) - float(logits[tokens[0]]))
    probabilities = weights / weights.sum()
    if top_p < 1:
        kept = 1 + int(np.searchsorted(np.cumsum(probabilities), top_p))
        tokens, probabilities = tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return tokens, probabilities
