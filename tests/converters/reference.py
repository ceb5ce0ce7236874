"""What the original answers: Transformers' own model class and tokenizer, one text at a time, pooling in NumPy. Nothing of ours."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from tiny import MAX_LENGTH, MODEL_CLASSES

from edgeexport.artifact import Task


class Original:
    """A checkpoint directory in Transformers.

    Attributes:
        model: with Transformers' plain attention.
        tokenizer: Transformers' own.
    """

    def __init__(self, directory: Path, task: Task, max_length: int = MAX_LENGTH) -> None:
        """Load both."""
        import transformers

        transformers.logging.set_verbosity_error()
        self.task, self.max_length = task, max_length
        model_class = getattr(transformers, MODEL_CLASSES[task])
        self.model = model_class.from_pretrained(directory, attn_implementation="eager", dtype="float32").eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.parameters = set(inspect.signature(self.model.forward).parameters)

    def tokens(self, text: str, pair: str | None = None, **options: Any) -> Any:
        """The model's inputs, each int64 [1, seq]."""
        cut = "only_second" if self.task is Task.QUESTION_ANSWERING else "longest_first"
        texts = ([text],) if pair is None else ([text], [pair])
        if getattr(self.model.config, "type_vocab_size", 1) > 1 and "token_type_ids" in self.parameters:
            # ALBERT's tokenizer of Transformers 5 leaves them out unless asked, and its models were trained with them.
            options["return_token_type_ids"] = True
        return self.tokenizer(*texts, return_tensors="pt", truncation=cut, max_length=self.max_length, **options)

    def firsts(self, text: str) -> list[int]:
        """Positions of the first token of each word."""
        words = self.tokens(text).word_ids()
        return [i for i, word in enumerate(words) if word is not None and word != words[i - 1]]  # before the first word stands None

    def outputs(self, text: str, pair: str | None = None) -> dict[str, np.ndarray]:
        """The model's outputs by Transformers' names, each float32 [1, …]."""
        import torch

        features = {name: value for name, value in self.tokens(text, pair).items() if name in self.parameters}
        with torch.no_grad():
            found = self.model(**features)
        return {name: value.numpy() for name, value in found.items() if name in {"logits", "start_logits", "end_logits", "last_hidden_state"}}

    def vector(self, text: str, pooling: str, *, normalize: bool = False) -> np.ndarray:
        """float32 [hidden]."""
        found = pooled(self.outputs(text)["last_hidden_state"][0], pooling)
        return found / np.linalg.norm(found) if normalize else found


def pooled(hidden: np.ndarray, mode: str) -> np.ndarray:
    """One vector of the vectors float32 [seq, hidden] of a text without padding."""
    return {
        "cls": lambda: hidden[0],
        "lasttoken": lambda: hidden[-1],
        "max": lambda: hidden.max(axis=0),
        "mean": lambda: hidden.mean(axis=0),
        "mean_sqrt_len": lambda: hidden.sum(axis=0) / np.sqrt(len(hidden)),
    }[mode]()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
