"""A bundle as a model of EleutherAI's lm-evaluation-harness: published tasks run on the very file that ships, in the device's runtime.

    python -m edgeexport.harness run --model edgeexport --model_args bundle=DIRECTORY,lane=onnx-generate --tasks lambada_openai --limit 200

Everything else is the harness's own command line. Extra: ``harness``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from edgeexport.errors import BundleError, DataError
from edgeexport.session.bundle import Bundle
from edgeexport.session.decoder_model import DecoderModel
from edgeexport.session.language_model import Prompt
from edgeexport.session.sampling import Sampling

# Of an answer, where a task does not say how long it may be. Source: the harness's own model of Transformers (lm_eval/models/huggingface.py).
ANSWER_TOKENS = 256

_log = logging.getLogger(__name__)


@register_model("edgeexport")
class BundleModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A lane of a bundle for text generation."""

    def __init__(self, bundle: str, lane: str | None = None, threads: int = 2, **_: object) -> None:
        """Open a bundle.

        Args:
            bundle: its directory or archive.
            lane: which lane; default: the first whose runtime is installed.
            threads: how many threads an operator may use.
            _: what the harness tells every model: sizes of batches, and a device. A lane reads one text at a time.

        Raises:
            BundleError: there is no bundle, or it is for another task.
        """
        super().__init__()
        self._bundle = Bundle.open(bundle, lane=lane, threads=int(threads))
        if self._bundle.payload.generation is None:
            raise BundleError(f"{bundle} is no language model.", why="the harness asks for the probabilities of texts, and for answers",
                              hint="its own report has the metric of its task")
        if not isinstance(self._bundle.session, DecoderModel):
            raise BundleError(f"The lane {self._bundle.lane} cannot be asked by the harness.",
                              why="its runtime does not tell which token it holds for the likeliest", hint="take another lane: lane=NAME")
        self._model = self._bundle.session
        self._told = False
        self._name = f"{bundle}@{self._bundle.lane}"

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests by that it has prepared."""
        return self._name.replace("/", "_")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._model.spec.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which every token counts: what begins one, or where there is no such token, what ends the text before."""
        name = self._model.spec.tokens.get("bos_token")
        begin: int | None = self._model.tokenizer.token_to_id(name) if name else None
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around it, unless it is told not to, or a template has begun the text already."""
        if add_special_tokens is None:
            begin = self._model.spec.tokens.get("bos_token")
            add_special_tokens = not (begin and string.startswith(begin))
        ids: list[int] = self._model.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The bundle's template, of which it has one."""
        return self._model.spec.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the template writes it.

        Raises:
            DataError: the model was trained on no conversations, or its template refuses this one.
        """
        return self._model.write_conversation(chat_history, answer=add_generation_prompt)

    def _loglikelihood_tokens(self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: Any) -> list[tuple[float, bool]]:
        """Of each continuation of a context, the logarithm of its probability, and whether it is what greedy decoding gives."""
        found = []
        for key, context, continuation in self._shown(requests, "scoring", options):
            answer = self._score(context, continuation)
            self.cache_hook.add_partial("loglikelihood", key, answer)
            found.append(answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text, the logarithm of its probability; a text longer than the context is read in windows, as the harness cuts them."""
        found = []
        for request in self._shown(requests, "reading", {"disable_tqdm": disable_tqdm}):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self._model.decoder.context, 1)
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt. What is drawn is drawn anew for each request: some tasks ask the same many times, and count who is right."""
        found = []
        for number, request in enumerate(self._shown(requests, "answering", {"disable_tqdm": disable_tqdm})):
            prompt, wishes = request.args
            found.append(self._answer(prompt, wishes, seed=number))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _shown(self, requests: Sequence[Any], doing: str, options: dict[str, Any]) -> Iterator[Any]:
        yield from tqdm(requests, desc=f"{self._bundle.lane}: {doing}", disable=options.get("disable_tqdm", False))

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """As in :meth:`_loglikelihood_tokens`; of what is longer than the model holds, the beginning is left out, as the harness's own models do."""
        count, context_size = len(continuation), self._model.decoder.context
        if count > context_size:
            raise DataError(f"A continuation of {count} tokens can't be scored.", why=f"the bundle holds {context_size} tokens",
                            hint="build it with a longer model.max_length, or leave the task out")
        read = [*context, *continuation][:-1][-context_size:]
        total, greedy = 0.0, True
        for number, token in enumerate(continuation):
            logits = (self._model.decoder.read(np.array(read[len(read) - count + number:][:1], np.int64)) if number
                      else self._model.decoder.read_prompt(read[:len(read) - count + 1])).astype(np.float64)
            total += float(logits[token] - np.logaddexp.reduce(logits))
            greedy = greedy and int(logits.argmax()) == token
        return total, greedy

    def _answer(self, prompt: str, asked: dict[str, Any], seed: int) -> str:
        wishes: dict[str, Any] = normalize_gen_kwargs(asked, ANSWER_TOKENS)
        sampling = Sampling(temperature=float(wishes.get("temperature", 1.0)), top_k=int(wishes.get("top_k") or 0),
                            top_p=float(wishes.get("top_p") or 1.0), seed=seed) if wishes["do_sample"] else Sampling()
        ids = self.tok_encode(prompt)
        tokens = self._room(wishes["max_gen_toks"], len(ids))
        given = Prompt(prompt, np.asarray(ids[-(self._model.decoder.context - tokens):], np.int64), np.zeros(0, np.int64))
        return "".join(piece.text for piece in self._model.generate(given, sampling, tokens, [stop for stop in wishes["until"] if stop]))

    def _room(self, wished: int, prompt: int) -> int:
        """How many tokens an answer may have. A prompt that leaves too few loses its beginning, as in the harness's own models; these refuse an
        answer as long as the context, where here prompt and answer share it, and a long prompt gets half."""
        context = self._model.decoder.context
        if wished < context:
            return wished
        room = max(context - prompt, context // 2)
        if not self._told:
            _log.warning("answers of %d tokens are asked for: prompt and answer have to share the %d that the bundle holds", wished, context)
            self._told = True
        return room


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    with contextlib.suppress(KeyboardInterrupt):
        cli_evaluate()
