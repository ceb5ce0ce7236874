"""GGUF files as sources: the same model and the same tokens as the checkpoint that was packed into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_decoders import CONTEXT, END, START, TEMPLATE, byte_level, write_decoder
from tokenizers import Tokenizer
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.catalog import find_step
from edgeexport.errors import CheckpointError
from edgeexport.gguf_checkpoint import read_gguf
from edgeexport.probes import generation_probes
from edgeexport.recipe import ModelSection
from edgeexport.session.generation import read_generation_spec
from edgeexport.step import View

gguf = pytest.importorskip("gguf")
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a projection in llama.cpp's order, which rotates neighbours where Transformers rotates halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def pack(directory: Path, path: Path, kind: Any, more: dict[str, np.ndarray] | None = None, **changed: Any) -> Path:
    """A checkpoint of llama's family as a GGUF file, as llama.cpp's converter makes one, with more tensors; metadata of None are left out."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    config, tokenizer = model.config, byte_level()
    vocabulary = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    metadata = {
        "llama.context_length": CONTEXT, "llama.embedding_length": config.hidden_size, "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size, "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads, "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10000.0, "llama.vocab_size": len(vocabulary),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": vocabulary, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3 if token in {START, END, "<|endoftext|>"} else 1 for token in vocabulary],
        "tokenizer.ggml.bos_token_id": tokenizer.token_to_id(START), "tokenizer.ggml.eos_token_id": tokenizer.token_to_id(END),
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE} | changed
    writer = gguf.GGUFWriter(str(path), "llama")
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        if value is not None:
            add[type(value)](key, value)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name == "lm_head.weight":
            continue  # tied
        place = NAMES.get(name)
        if place is None:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            place = f"blk.{layer}.{PARTS[part]}.weight"
            if part.endswith(("q_proj", "k_proj")):
                values = turned(values, config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads)
        packed = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(place, gguf.quants.quantize(values, packed), raw_dtype=packed)
    for place, values in (more or {}).items():
        writer.add_tensor(place, values)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return path


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
