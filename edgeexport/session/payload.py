"""A payload on disk: models, tokenizer and what they mean; and a session that runs one of its variants."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from edgeexport.errors import BundleError, DataError, RuntimeUnavailable
from edgeexport.session import tasks
from edgeexport.session.generation import GENERATION_FILE, Decoder, GenerationSpec, read_generation_spec
from edgeexport.session.run_genai_decoder import GenaiDecoder
from edgeexport.session.run_litert_lm import LitertLm
from edgeexport.session.run_onnx_decoder import OnnxDecoder
from edgeexport.session.run_onnxruntime import OnnxModel
from edgeexport.session.run_tflite import TfliteModel
from edgeexport.session.run_tflite_decoder import TfliteDecoder
from edgeexport.session.text import Encoded, Tokenizer, read_text_spec

if TYPE_CHECKING:
    import tokenizers

PAYLOAD_FILE = "payload.json"
GENERATION = "text-generation"


class LoadedModel(Protocol):
    """A model in a runtime."""

    lengths: tuple[int, ...]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""


class Runtime(NamedTuple):
    """A runtime that a session can use.

    Attributes:
        format: of the files that it runs.
        module: what must be importable.
        load: makes a model of a file and a number of threads; None where the runtime runs language models only.
        load_decoder: the same of a language model, with the tokens that its context holds; None where the runtime runs none.

    A runtime that chooses the tokens of an answer itself has no decoder, but :class:`LitertLm`.
    """

    format: str
    module: str
    load: Callable[[Path, int], LoadedModel] | None
    load_decoder: Callable[[Path, int, int], Decoder | LitertLm] | None = None


def _tflite(module: str) -> Runtime:
    return Runtime("tflite", module, partial(TfliteModel, module=module))


# By the distribution's name.
RUNTIMES = {
    "onnxruntime": Runtime("onnx", "onnxruntime", OnnxModel, OnnxDecoder),
    "onnxruntime-genai": Runtime("onnx", "onnxruntime_genai", None, GenaiDecoder),
    "ai-edge-litert": _tflite("ai_edge_litert.interpreter")._replace(load_decoder=TfliteDecoder),
    "litert-lm-api": Runtime("litertlm", "litert_lm", None, LitertLm),
    "tflite-runtime": _tflite("tflite_runtime.interpreter"),
}


class TruncationWarning(UserWarning):
    """A text was longer than the model reads, and was cut."""


class Payload:
    """The payload below a directory.

    Attributes:
        head: what the outputs mean.
        spec: how text becomes inputs.
        variants: variant name → its entry of payload.json.
        generation: what ends a text and how a conversation is written; None for other tasks than text generation.
    """

    def __init__(self, directory: Path) -> None:
        """Read the payload's description.

        Raises:
            BundleError: there is none, or it is damaged.
        """
        self.directory = directory
        try:
            data = json.loads((directory / PAYLOAD_FILE).read_text(encoding="utf-8"))
            self.head = tasks.Head(data["task"], tuple(data["labels"]), data["problem_type"])
            self.variants: dict[str, dict[str, Any]] = data["variants"]
            self.spec = read_text_spec(directory / "text" / "text.json")
            self.generation = read_generation_spec(directory / "text" / GENERATION_FILE) if self.head.task == GENERATION else None
        except FileNotFoundError as exc:
            raise BundleError(f"{directory} is not a bundle.", why=f"it has no {Path(exc.filename).name}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise BundleError(f"{directory} is damaged.", why=f"{PAYLOAD_FILE} or text.json cannot be read: {exc}") from exc

    def model_path(self, variant: str) -> Path:
        """The model file of a variant."""
        return self.directory / str(self.variants[variant]["model"])

    def tokenizer(self) -> Tokenizer:
        """The payload's tokenizer."""
        cut = "only_second" if self.head.task == "question-answering" else "longest_first"
        return Tokenizer(self.directory / "text" / "tokenizer.json", self.spec, cut)

    def whole_tokenizer(self) -> tokenizers.Tokenizer:
        """The same in the tokenizers library, without a limit: what is too long for a language model is nothing to be cut in silence."""
        import tokenizers

        found = tokenizers.Tokenizer.from_file(str(self.directory / "text" / "tokenizer.json"))
        found.no_padding()
        found.no_truncation()
        return found

    def require_generation(self) -> GenerationSpec:
        """What ends a text.

        Raises:
            DataError: the model does not generate text.
        """
        if self.generation is None:
            raise DataError(f"This is a model for {self.head.task}, and generates no text.", hint="edgeexport run answers texts with it")
        return self.generation


def loader(runtime: str, *, generates: bool) -> Callable[..., Any]:
    """What loads a model in a runtime: a language model, or one for another task.

    Raises:
        RuntimeUnavailable: the runtime is not installed here, or runs no such models.
    """
    chosen = RUNTIMES[runtime]
    load = chosen.load_decoder if generates else chosen.load
    if load is None:
        raise RuntimeUnavailable(f"The runtime {runtime} runs {'no language models' if generates else 'language models only'}.")
    try:
        importlib.import_module(chosen.module)
    except ImportError as exc:
        raise RuntimeUnavailable(f"The runtime {runtime} is not installed here.", why=str(exc), hint=f"pip install {runtime}") from exc
    return load


class Session:
    """A variant of a payload in a runtime: text in, answer out."""

    def __init__(self, payload: Payload, variant: str, runtime: str, threads: int = 1) -> None:
        """Load the tokenizer and the model.

        Raises:
            RuntimeUnavailable: the runtime is not installed here.
        """
        load = loader(runtime, generates=False)
        self.payload = payload
        self.tokenizer = payload.tokenizer()
        self.model: LoadedModel = load(payload.model_path(variant), threads)

    def encode(self, text: str, pair: str | None = None, role: str | None = None) -> Encoded:
        """The tokens of a text, with the prefix of its role."""
        for given in (text, pair):
            if given is not None and not isinstance(given, str):
                raise DataError(f"A text is a string, not {type(given).__name__}.", hint="run_all answers several texts")
        if text is None:
            raise DataError("There is no text.")
        return self.tokenizer.encode(self.payload.spec.prefixed(text, role), pair)

    def length_for(self, count: int) -> int:
        """The shortest length of the model that holds `count` tokens."""
        return next((length for length in self.model.lengths if length >= count), count)

    def outputs(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """The model's outputs for a text."""
        return self.model.run(encoded.feeds(self.payload.spec, self.length_for(len(encoded.ids))))

    def answer(self, text: str, pair: str | None = None, role: str | None = None) -> Any:
        """The answer to a text, in the form of Transformers' pipelines.

        Raises:
            DataError: a text that this task can't answer, such as one without a mask token.
        """
        if self.payload.head.task == "question-answering" and pair is None:
            raise DataError("A question needs the text that holds its answer.", hint="give question and context")
        if pair is not None and self.payload.head.task not in tasks.PAIR_TASKS:
            raise DataError(f"A model for {self.payload.head.task} takes one text at a time.", hint="leave the second text out")
        encoded = self.encode(text, pair, role)
        if encoded.truncated:
            warnings.warn(f"the text was cut to {self.payload.spec.max_length} tokens", TruncationWarning, stacklevel=2)
        return tasks.answer(self.payload.head, self.tokenizer, encoded, self.outputs(encoded), text, pair)
