"""A TFLite language model as LiteRT-LM takes it: one file with the model, the tokenizer, the chat template, and what begins and ends a text.

LiteRT-LM differs from Transformers in what a template sees, and so in what it must be told:

- The content of a message is a list of parts there: the template first puts their texts together.
- Special tokens such as ``bos_token`` are empty there: the template sets them, except the one that begins a text.
- The **start token** is put before every text, of a conversation and else. So the template must not write it too; where it does so by its own
  letters, there is none, and texts outside of conversations begin without it.
- Caches have one length there: what a runtime may make shorter is fixed.

Source: the behaviour of LiteRT-LM 0.18.1, as tests/converters/test_pack_litertlm.py sees it; llm_metadata.proto of litert-lm-builder.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.session.generation import GENERATION_FILE, GenerationSpec, read_generation_spec
from edgeexport.step import Context, Refusal, Step, View

from ._generation_spec import written
from ._task_model import read_text
from ._tflite_file import mapped, read_model, write_compactly

FILE = "model.litertlm"
BEGIN = "bos_token"
TEXT_OF_PARTS = (
    "{%- set found = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message.content is not string -%}"
    "{%- set message = dict(message, content=message.content | map(attribute='text') | join) -%}"
    "{%- endif -%}"
    "{%- set found.messages = found.messages + [message] -%}"
    "{%- endfor -%}"
    "{%- set messages = found.messages -%}"
    # What follows keeps the blanks that it begins with.
    "{{ '' }}")


class PackLitertlm(Step):
    """Pack for LiteRT-LM."""

    name: ClassVar[str] = "pack_litertlm"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "model": frozenset({Kind.TFLITE})}
    backends: ClassVar[tuple[str, ...]] = ("litert-lm-builder", "ai-edge-litert", "flatbuffers", "tokenizers", "jinja2")
    extra: ClassVar[str | None] = "tflite"
    seconds_guess: ClassVar[float] = 3.0

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The model and a little text."""
        return inputs["model"].model_copy(update={"kind": Kind.LITERTLM})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write the file."""
        from litert_lm_builder import litertlm_builder
        from litert_lm_builder.runtime.proto import llm_metadata_pb2

        checkpoint, model = inputs["checkpoint"].path, inputs["model"]
        spec, tokenizer = read_generation_spec(checkpoint / GENERATION_FILE), checkpoint / "tokenizer.json"
        metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=read_text(checkpoint).max_length)
        metadata.llm_model_type.generic_model.SetInParent()
        for stop in spec.stop_ids:
            metadata.stop_tokens.add().token_ids.ids.append(stop)
        start = start_token(spec, tokenizer)
        if start is not None:
            metadata.start_token.token_ids.ids.append(start)
        if spec.chat_template:
            metadata.jinja_prompt_template = template(spec, begins=start is None)

        said, fixed = context.scratch / "metadata.pb", context.scratch / "model.tflite"
        said.write_bytes(metadata.SerializeToString(deterministic=True))
        write_compactly(fixed, read_model(mapped(model.path / "model.tflite")), fixed=True)
        builder = litertlm_builder.LitertLmFileBuilder()
        builder.add_llm_metadata(str(said))
        builder.add_hf_tokenizer(str(tokenizer))
        builder.add_tflite_model(str(fixed), litertlm_builder.TfLiteModelType.PREFILL_DECODE)
        # The builder writes a random number and the time into each file; ours is the same for the same content.
        number = uuid.uuid5(uuid.NAMESPACE_OID, "".join(digest_file(path) for path in (said, tokenizer, fixed)))
        own = [litertlm_builder.Metadata(key="uuid", value=str(number), dtype=litertlm_builder.DType.STRING)]
        with (out / FILE).open("wb") as file, patch.object(litertlm_builder, "populate_system_metadata", lambda _: own):
            builder.build(file)
        fixed.unlink()
        return self.infer({"model": model.spec})  # type: ignore[return-value]


def start_token(spec: GenerationSpec, tokenizer: Path) -> int | None:
    """The token that every text begins with; None where conversations don't, or write it by its letters."""
    from tokenizers import Tokenizer

    begin = spec.tokens.get(BEGIN)
    found = Tokenizer.from_file(str(tokenizer))
    number: int | None = found.token_to_id(begin) if begin else None
    if not begin or number is None:
        return None
    if not spec.chat_template:
        return number if found.encode("a").ids[:1] == [number] else None
    as_is, without = (next(iter(written(spec.chat_template, spec.tokens | more)), "") for more in ({}, {BEGIN: ""}))
    return number if as_is.startswith(begin) and not without.startswith(begin) else None


def template(spec: GenerationSpec, *, begins: bool) -> str:
    """The chat template for LiteRT-LM; `begins` says whether it writes itself what begins a text."""
    tokens: dict[str, Any] = {**spec.tokens, **({} if begins or BEGIN not in spec.tokens else {BEGIN: ""})}
    known = "".join(f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in sorted(tokens.items()))
    return f"{known}{TEXT_OF_PARTS}{spec.chat_template}"
