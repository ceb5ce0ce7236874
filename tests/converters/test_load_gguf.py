"""GGUF files as sources: the same model and the same tokens as the checkpoint that was packed into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_models import pack
from tiny_decoders import END, START, TEMPLATE, write_decoder
from tokenizers import Tokenizer
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.catalog import find_step
from edgeexport.errors import CheckpointError
from edgeexport.gguf_checkpoint import ARCHITECTURES, read_gguf
from edgeexport.probes import generation_probes
from edgeexport.recipe import ModelSection
from edgeexport.session.generation import read_generation_spec
from edgeexport.step import View


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("gguf") / "llama", "llama")


def loaded(zoo: Zoo, path: Path) -> View:
    found, section = read_gguf(path, "m"), ModelSection(source="m")
    step = find_step("load_gguf")(spec=found.spec(section), text=found.text_spec(section).as_dict())
    return zoo.run(step, {"source": View(path.parent, Spec(kind=Kind.SOURCE, facts={"digests": {path.name: digest_file(path)}}))})


def logits(directory: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.inference_mode():
        return model(torch.arange(3, 90)[None]).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-5), ("Q8_0", 0.05)])
def test_it_is_the_same_model(zoo: Zoo, original: Path, tmp_path: Path, kind: str, tolerance: float) -> None:
    view = loaded(zoo, pack(original, tmp_path / "m.gguf", gguf.GGMLQuantizationType[kind]))
    ours, theirs = logits(view.path), logits(original)
    assert np.abs(ours - theirs).mean() < tolerance * theirs.std()
    config = json.loads((view.path / "config.json").read_text())
    assert config["tie_word_embeddings"] and "quantization_config" not in config and str(tmp_path) not in json.dumps(config)
    assert view.spec.parameters == sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(original).parameters())
    assert view.spec.facts.get("lossy_source") == (None if kind == "F32" else "GGUF Q8_0")


@pytest.mark.parametrize("family", [family for family, _ in ARCHITECTURES.values()])
def test_every_family_is_the_same_model(zoo: Zoo, tmp_path: Path, family: str) -> None:
    """Also past its window, where it has one. (What the files don't say is as in the families' own models.)"""
    settings: dict[str, Any] = {"phi3": {"sliding_window": 32}, "gpt2": {"n_positions": 1024}, "qwen3": {"head_dim": 128}}.get(family, {})
    if family.startswith("gemma"):
        settings = {"head_dim": 256, "query_pre_attn_scalar": 256}
    source = write_decoder(tmp_path / "source", family, **settings)
    view = loaded(zoo, pack(source, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32))
    ours, theirs = logits(view.path), logits(source)
    assert np.abs(ours - theirs).max() < 1e-4 * theirs.std()
    config, written = (json.loads((path / "config.json").read_text()) for path in (view.path, source))
    assert config.get("sliding_window") == written.get("sliding_window")


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_a_head_that_is_the_table_once_more_is_tied(zoo: Zoo, tmp_path: Path, family: str) -> None:
    """llama.cpp's converter writes these families' table twice."""
    source = write_decoder(tmp_path / "source", family, **({"n_positions": 1024} if family == "gpt2" else {}))
    table = transformers.AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight.detach().numpy()
    view = loaded(zoo, pack(source, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, {"output.weight": table}))
    assert np.abs(logits(view.path) - logits(source)).max() < 1e-4 * logits(source).std()
    config = json.loads((view.path / "config.json").read_text())
    assert config.get("tie_word_embeddings", True)
    whole = transformers.AutoModelForCausalLM.from_pretrained(source)
    assert view.spec.parameters == sum(parameter.numel() for parameter in whole.parameters())


def test_it_has_the_same_tokens_and_ends(zoo: Zoo, original: Path, tmp_path: Path) -> None:
    view = loaded(zoo, pack(original, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32))
    ours, theirs = Tokenizer.from_file(str(view.path / "tokenizer.json")), Tokenizer.from_file(str(original / "tokenizer.json"))
    for row in generation_probes(conversations=False).rows:
        assert ours.encode(row.text).ids == theirs.encode(row.text).ids
    marked = f"{START}user\n1234 apples{END}\n"
    assert ours.encode(marked).ids == theirs.encode(marked).ids and ours.decode(ours.encode(marked).ids) == "user\n1234 apples\n"
    spec = read_generation_spec(view.path / "generation.json")
    assert spec.stop_ids == (theirs.token_to_id(END),) and spec.chat_template == TEMPLATE and spec.tokens["bos_token"] == START


def test_a_token_is_put_before_every_text_where_the_file_says_so(zoo: Zoo, original: Path, tmp_path: Path) -> None:
    view = loaded(zoo, pack(original, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, **{"tokenizer.ggml.add_bos_token": True}))
    tokenizer = Tokenizer.from_file(str(view.path / "tokenizer.json"))
    assert tokenizer.encode("one").tokens[0] == START and tokenizer.encode("one", add_special_tokens=False).tokens[0] != START


@pytest.mark.parametrize(("changed", "told"), [
    ({"tokenizer.ggml.merges": None}, "lacks its merges"), ({"tokenizer.ggml.pre": "klingon"}, "cuts texts as 'klingon' does"),
    ({"tokenizer.ggml.model": "rwkv"}, "of the kind 'rwkv'"), ({"tokenizer.ggml.eos_token_id": None}, "does not say what ends a text"),
    ({"tokenizer.chat_template": "{% for %}"}, "chat template has an error"),
])
def test_what_would_be_wrong_on_the_device_is_refused(zoo: Zoo, original: Path, tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    if "eos" in str(changed):
        changed = changed | {"tokenizer.chat_template": None}
    with pytest.raises(CheckpointError, match=told):
        loaded(zoo, pack(original, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, **changed))


def test_weights_that_would_be_left_out_are_told(zoo: Zoo, original: Path, tmp_path: Path) -> None:
    biased = pack(original, tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, {"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError, match="Not all of the GGUF file is read") as raised:
        loaded(zoo, biased)
    assert str(raised.value.why).startswith("64 of its")


def test_phi3s_special_tokens_take_the_blanks_after_them() -> None:
    from edgeexport.converters._gguf_tokenizer import make_tokenizer

    pieces = {"<unk>": 2, "<s>": 3, "<|user|>": 3, "<|end|>": 3, "▁": 1, "h": 1, "i": 1, "▁hi": 1, "▁h": 1, "hi": 1, "<0x0A>": 6}
    metadata = {"general.architecture": "phi3", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list(pieces),
                "tokenizer.ggml.scores": [-float(number) for number in range(len(pieces))], "tokenizer.ggml.token_type": list(pieces.values()),
                "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_space_prefix": False}
    text = "<|user|>\nhi<|end|>\n<s> hi"
    ours, others = ([list(pieces)[number] for number in make_tokenizer(metadata | changed).encode(text).ids]
                    for changed in ({}, {"general.architecture": "llama"}))
    assert ours == ["<|user|>", "hi", "<|end|>", "<s>", "▁hi"]
    assert others == ["<|user|>", "<0x0A>", "hi", "<|end|>", "<0x0A>", "<s>", "▁hi"]


def test_pieces_of_sentencepiece_are_joined_by_their_scores() -> None:
    from edgeexport.converters._gguf_tokenizer import make_tokenizer

    pieces = {"<unk>": (0.0, 2), "<s>": (0.0, 3), "▁": (-9.0, 1), "a": (-9.0, 1), "b": (-9.0, 1), "c": (-9.0, 1), "ab": (-2.0, 1), "bc": (-1.0, 1),
              "abc": (-5.0, 1), "▁a": (-4.0, 1), "<0x21>": (0.0, 6)}
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list(pieces),
                "tokenizer.ggml.scores": [score for score, _ in pieces.values()],
                "tokenizer.ggml.token_type": [kind for _, kind in pieces.values()], "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.unknown_token_id": 0}
    tokenizer = make_tokenizer(metadata)
    # "bc" is joined before "ab", which then is no pair any more; and "▁a" before "abc".
    assert tokenizer.encode("abc").tokens == ["<s>", "▁a", "bc"] and tokenizer.encode("!").tokens == ["<s>", "▁", "<0x21>"]
    assert tokenizer.decode(tokenizer.encode("abc a!").ids) == "abc a!"
