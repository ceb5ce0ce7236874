"""How far a lane's answers may be from the original's: the default bounds, and why each is where it is."""

from __future__ import annotations

from collections.abc import Mapping

from edgeexport.artifact import Model, Task
from edgeexport.errors import UnknownName


class Margin(Model):
    """A default bound, and why it is where it is."""

    bound: float
    reason: str


VECTOR_TASKS = (Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY)
_LOGITS = Margin(bound=0.5, reason="half of the logits' own spread: beyond it the lane is another model, whatever its answers on easy texts")

# The table of default margins. A recipe's [parity] may set others, by the same names.
MARGINS: dict[str, dict[Task, Margin]] = {
    "cosine_p5": {
        task: Margin(bound=0.97, reason="an error of this angle moves a similarity score by about 0.25/sqrt(width), 0.012 at width 384: "
                     "less than what lies between neighbours that people tell apart")
        for task in VECTOR_TASKS
    },
    "agreement": {
        Task.TEXT_CLASSIFICATION: Margin(bound=0.95, reason="probes are out of any domain, so that many lie near a class boundary; a label "
                                         "that changes for 1 in 20 of them changes far more rarely in use"),
        Task.TOKEN_CLASSIFICATION: Margin(bound=0.97, reason="most words are in no entity, so that an equal share means more changed entities"),
        Task.QUESTION_ANSWERING: Margin(bound=0.85, reason="the whole span must be the same to the token, and spans often have near-equal rivals"),
        Task.TEXT_GENERATION: Margin(bound=0.97, reason="of the tokens that come next, the likeliest; counted where it is 1.65 times as likely as "
                                     "the second, since where the original itself wavers, as between 'a' and 'the', any rounding tips it. The "
                                     "140-odd texts of the probe set can prove no less than 2.6 % of exceptions"),
        Task.FILL_MASK: Margin(bound=0.85, reason="the first of a whole vocabulary must be the same, and synonyms often are near-equal"),
    },
    "perplexity_ratio": {
        Task.TEXT_GENERATION: Margin(bound=1.02, reason="what a model loses that has about 9 % fewer parameters: Kaplan et al. 2020, whose loss goes "
                                     "with the parameters to the power of -0.076, at a loss of 3 nats"),
    },
    "divergence": {
        Task.TEXT_GENERATION: Margin(bound=0.02, reason="what a lane loses on texts as the original itself writes them, in nats per token; 0.02 is a "
                                     "perplexity of 1.02 times the original's"),
    },
    "continuations": {
        Task.TEXT_GENERATION: Margin(bound=0.75, reason="a greedy text may leave the original's where two tokens are as good as equal, and nowhere "
                                     "else; of a few dozen that are continued, one or two more are left to chance"),
    },
    "logit_error_p95": dict.fromkeys(
        (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING, Task.FILL_MASK), _LOGITS),
}


def bound_for(name: str, task: Task, given: Mapping[str, float]) -> float | None:
    """The recipe's bound, else the default one; None where the figure is not one of the task's."""
    if task not in MARGINS[name]:
        return None
    return given.get(name, MARGINS[name][task].bound)


def check_names(given: Mapping[str, float]) -> None:
    """Check the names of a recipe's margins.

    Raises:
        UnknownName: a name that is not a figure of parity.
    """
    for name in given:
        if name not in MARGINS:
            raise UnknownName.among("figure of parity", name, MARGINS)
