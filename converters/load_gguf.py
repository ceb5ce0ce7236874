"""Take a GGUF file in: weights turned into float32, and the tokenizer that its metadata describe. The start of a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.errors import CheckpointError
from edgeexport.gguf_file import HEAD, TEMPLATE, WINDOW, GgufHeader, read_gguf_header
from edgeexport.step import Context, Refusal, Step, View

from ._gguf_tokenizer import make_tokenizer, special_ids, special_tokens
from .load_checkpoint import write_text

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


class LoadGguf(Step):
    """Write an ordinary checkpoint of what the file holds; Transformers reads the weights.

    Attributes:
        spec: what the file's header says it is.
        text: the text spec. None for a base model into which an adapter is merged.
    """

    name: ClassVar[str] = "load_gguf"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"source": frozenset({Kind.SOURCE})}
    backends: ClassVar[tuple[str, ...]] = ("gguf", "torch", "transformers", "tokenizers")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 30.0

    spec: Spec
    text: dict[str, Any] | None = None

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The spec was read from the header already; in float32 it is larger."""
        return self.spec.model_copy(update={"bytes": 4 * (self.spec.parameters or 0)})

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """The weights twice."""
        return 900 + 8 * (self.spec.parameters or 0) // 1_000_000

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Unpack, and write the tokenizer's files."""
        ((name, digest),) = inputs["source"].spec.facts["digests"].items()
        path = inputs["source"].path / name
        if digest_file(path) != digest:
            raise CheckpointError(f"{name} was changed while it was read.", hint="start again when nothing writes to it")
        header = read_gguf_header(path)
        metadata = header.metadata
        context.report(None, "making the tokenizer")
        make_tokenizer(metadata).save(str(out / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens(metadata)}
        if metadata.get(TEMPLATE):
            settings["chat_template"] = metadata[TEMPLATE]
        (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
        context.report(None, "unpacking the weights")
        unpack(path, header, out, context)
        say_what_ends_texts(out, special_ids(metadata))
        if self.text is not None:
            write_text(out, self.text, self.spec, context)
        return self.infer({"source": inputs["source"].spec})  # type: ignore[return-value]


def say_what_ends_texts(out: Path, ids: Mapping[str, int]) -> None:
    """Have config.json name the tokens that the file names and no others: of what it does not say, Transformers takes the family's first model's."""
    path = out / "config.json"
    config = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in SPECIAL_IDS}
    path.write_text(json.dumps({**config, **ids}, indent=1, sort_keys=True), encoding="utf-8")
    (out / "generation_config.json").unlink(missing_ok=True)


def unpack(path: Path, header: GgufHeader, out: Path, context: Context) -> None:
    """Write config.json and safetensors.

    Args:
        path: the file.
        header: what it says of itself.
        out: the folder to write to.
        context: says how many threads there are.

    Raises:
        CheckpointError: Transformers can't read the file, or not all of it.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(context.threads)
    try:
        model: Any
        info: dict[str, Any]
        model, info = transformers.AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    except Exception as exc:  # a header may say anything, and Transformers checks little of it
        why = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise CheckpointError("Transformers cannot read the GGUF file.", why=why, hint="name the original checkpoint as source") from exc
    if info["missing_keys"]:
        raise CheckpointError("Weights are missing from the GGUF file.", why=", ".join(sorted(info["missing_keys"])[:4]),
                              hint="the model would answer from random weights; convert the original checkpoint again")
    if HEAD not in header.tensors:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    window = header.metadata.get(f"{header.metadata['general.architecture']}.{WINDOW}")
    if window and hasattr(model.config, "sliding_window"):  # Transformers' reading leaves some families' out
        model.config.sliding_window = window
    count = sum(tensor.count for tensor in header.tensors.values())
    unread = count - sum(parameter.numel() for parameter in model.parameters())
    if unread > 0:
        raise CheckpointError("Not all of the GGUF file is read.", why=f"{unread:,} of its {count:,} weights have no place in Transformers' model",
                              hint="name the original checkpoint as source")
    # It says that it is still packed, and would be saved so.
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_name_or_path", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(out, max_shard_size="100GB")
