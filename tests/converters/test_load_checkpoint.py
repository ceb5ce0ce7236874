"""Taking checkpoints in: what is read from their small files, tokenizers of the old kind, and everything that is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgeexport.converters._own_code import brings_code, brings_model
from tiny import CLASSES, ENTITIES, MAX_LENGTH, TEXTS, Case, write_checkpoint
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.checkpoint import Checkpoint, read_checkpoint
from edgeexport.errors import CheckpointError
from edgeexport.recipe import ModelSection
from edgeexport.session.text import Tokenizer, read_text_spec
from edgeexport.step import View
from edgeexport.text_settings import POOLING_FLAGS

ENCODER = Case("bert", Task.FEATURE_EXTRACTION, layers=1)
CLASSIFIER = Case("bert", Task.TEXT_CLASSIFICATION)
EMBEDDER = Case("bert", Task.SENTENCE_SIMILARITY, "mean", normalize=True, layers=1)
SECTION = ModelSection(source="m")


@pytest.fixture
def copy_of(zoo: Zoo, tmp_path: Path) -> Callable[[Case], Path]:
    """A checkpoint that a test may change."""
    return lambda case: Path(shutil.copytree(zoo.directory(case), tmp_path / "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (data | changes).items() if value is not None}), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(directory / "model.safetensors")), directory / "model.safetensors", metadata={"format": "pt"})


def test_what_is_read_from_the_files(zoo: Zoo) -> None:
    checkpoint = read_checkpoint(zoo.directory(CLASSIFIER))
    spec, text = checkpoint.spec(SECTION), checkpoint.text_spec(SECTION)
    assert (spec.kind, spec.task, spec.architecture, spec.precision) == (Kind.CHECKPOINT, Task.TEXT_CLASSIFICATION, "bert", "float32")
    assert spec.parameters == sum(parameter.numel() for parameter in zoo.original(CLASSIFIER).model.parameters())
    assert spec.facts["labels"] == list(CLASSES)
    assert (text.max_length, text.own_max_length) == (MAX_LENGTH, MAX_LENGTH)
    assert text.sources["own_max_length"] == "tokenizer_config.json: model_max_length"
    assert text.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert (text.pooling, text.normalize) == (None, False)
    assert read_checkpoint(zoo.directory(Case("bert", Task.TOKEN_CLASSIFICATION, layers=1))).labels == list(ENTITIES)


@pytest.mark.parametrize(("case", "task"), [(CLASSIFIER, Task.TEXT_CLASSIFICATION), (ENCODER, Task.FEATURE_EXTRACTION),
                                            (EMBEDDER, Task.SENTENCE_SIMILARITY), (Case("roberta", Task.FILL_MASK, layers=1), Task.FILL_MASK),
                                            (Case("bert", Task.QUESTION_ANSWERING, layers=1), Task.QUESTION_ANSWERING)], ids=str)
def test_the_head_tells_the_task(zoo: Zoo, case: Case, task: Task) -> None:
    assert read_checkpoint(zoo.directory(case)).task(None) is task


def test_the_longest_text_counts_positions_as_the_architecture_does(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(Case("roberta", Task.TEXT_CLASSIFICATION))
    edit(directory / "tokenizer_config.json", model_max_length=int(1e30))
    assert read_checkpoint(directory).text_spec(SECTION).max_length == MAX_LENGTH  # of MAX_LENGTH + 2 positions
    assert read_checkpoint(directory).text_spec(ModelSection(source="m", max_length=20)).max_length == 20
    with pytest.raises(CheckpointError, match=f"reads at most {MAX_LENGTH} tokens"):
        read_checkpoint(directory).text_spec(ModelSection(source="m", max_length=MAX_LENGTH + 1))


def test_classes_without_names_get_transformers_names(zoo: Zoo, tmp_path: Path, copy_of: Callable[[Case], Path]) -> None:
    two = write_checkpoint(tmp_path / "two", CLASSIFIER, id2label=None, label2id=None, num_labels=2)
    edit(two / "config.json", id2label=None, label2id=None)
    assert read_checkpoint(two).labels == ["LABEL_0", "LABEL_1"]
    import transformers

    assert transformers.AutoConfig.from_pretrained(two).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    directory = copy_of(CLASSIFIER)
    edit(directory / "config.json", id2label=None, label2id=None, num_labels=3)
    assert read_checkpoint(directory).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    edit(directory / "config.json", id2label={"1": "a", "2": "b", "3": "c"})
    with pytest.raises(CheckpointError, match="does not number its classes from 0"):
        read_checkpoint(directory).spec(SECTION)
    edit(directory / "config.json", id2label={str(i): f"class {i}" for i in range(12)})  # 10 is after 9, not after 1
    assert read_checkpoint(directory).labels == [f"class {i}" for i in range(12)]


def test_problem_type_reaches_the_payload(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(CLASSIFIER)
    edit(directory / "config.json", problem_type="multi_label_classification")
    assert zoo.load(directory, SECTION).spec.facts["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken"])
@pytest.mark.parametrize("version", [2, 6])
def test_pooling_as_sentence_transformers_writes_it(copy_of: Callable[[Case], Path], mode: str, version: int) -> None:
    """Version 6 names the mode and its modules' new places; those before had a flag for each mode."""
    directory = copy_of(EMBEDDER)
    if version == 6:
        config = {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True}
        kinds = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling", "base.modules.normalize.Normalize")
        (directory / "modules.json").write_text(json.dumps([
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (path, kind) in enumerate(zip(("", "1_Pooling", "2_Normalize"), kinds, strict=True))]))
    else:
        config = {"word_embedding_dimension": 32} | {flag: name == mode for flag, name in POOLING_FLAGS.items()}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    text = read_checkpoint(directory).text_spec(SECTION)
    assert (text.pooling, text.normalize) == (mode.removesuffix("_tokens"), True)
    assert text.sources["pooling"] == "1_Pooling/config.json"
    other = read_checkpoint(directory).text_spec(ModelSection(source="m", pooling="none", normalize=False))
    assert (other.pooling, other.normalize, other.sources["pooling"]) == ("none", False, "recipe")


def test_pooling_that_is_not_supported(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(EMBEDDER)
    file = directory / "1_Pooling" / "config.json"
    for config, told in (({"pooling_mode": ["mean", "cls"]}, "mean and cls"), ({"pooling_mode": "weightedmean"}, "weightedmean"),
                         ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "max and mean"),
                         ({"pooling_mode_mean_tokens": False}, "none")):
        file.write_text(json.dumps(config))
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(directory).text_spec(SECTION)
        assert f"wants {told}; supported" in str(caught.value)
    modules = json.loads((directory / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"models\.Dense is not supported"):
        read_checkpoint(directory).text_spec(SECTION)


@pytest.mark.parametrize(("config", "query", "document"), [
    ({"prompts": {"query": "query: ", "document": "passage: "}}, "query: ", "passage: "),
    ({"prompts": {"query": "q ", "passage": "p ", "corpus": "c "}}, "q ", "p "),
    ({"prompts": {"query": "", "sts": "task: "}, "default_prompt_name": "sts"}, "", "task: "),
    ({"prompts": {"sts": "task: "}, "default_prompt_name": None}, "", ""),
    ({}, "", "")])
def test_prompts(copy_of: Callable[[Case], Path], config: dict[str, Any], query: str, document: str) -> None:
    """As sentence-transformers' encode_query and encode_document choose them."""
    directory = copy_of(EMBEDDER)
    (directory / "config_sentence_transformers.json").write_text(json.dumps(config))
    text = read_checkpoint(directory).text_spec(SECTION)
    assert (text.query_prefix, text.document_prefix) == (query, document)
    assert read_checkpoint(directory).text_spec(ModelSection(source="m", query_prefix="mine ")).query_prefix == "mine "


def test_prefixes_that_would_not_do_what_they_are_for(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(EMBEDDER)
    edit(directory / "1_Pooling" / "config.json", include_prompt=False)
    assert read_checkpoint(directory).text_spec(SECTION).pooling == "mean"
    with pytest.raises(CheckpointError, match="leaves the prefix out of the pooling"):
        read_checkpoint(directory).text_spec(ModelSection(source="m", query_prefix="query: "))
    tagger = read_checkpoint(zoo.directory(Case("bert", Task.TOKEN_CLASSIFICATION, layers=1)))
    with pytest.raises(CheckpointError, match="words are classified"):
        tagger.text_spec(ModelSection(source="m", document_prefix="text: "))


def test_cutting_at_the_start_is_refused(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(CLASSIFIER)
    edit(directory / "tokenizer_config.json", truncation_side="left")
    with pytest.raises(CheckpointError, match="cuts long texts at their start"):
        read_checkpoint(directory).text_spec(SECTION)


def test_lower_case_that_the_tokenizer_does_not_see_to_is_refused(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(EMBEDDER)
    edit(directory / "sentence_bert_config.json", do_lower_case=True, max_seq_length=MAX_LENGTH)
    edit(directory / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(CheckpointError, match="in lower case"):
        read_checkpoint(directory).text_spec(SECTION)
    edit(directory / "tokenizer_config.json", do_lower_case=True)
    assert read_checkpoint(directory).text_spec(SECTION).max_length == MAX_LENGTH


def test_keys_without_a_value_are_as_none(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(CLASSIFIER)
    data = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(data | {"auto_map": None, "max_position_embeddings": None}), encoding="utf-8")
    assert read_checkpoint(directory).spec(SECTION).architecture == "bert"
    assert read_checkpoint(directory).text_spec(SECTION).max_length == MAX_LENGTH


def test_padding_and_mask_ids(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(Case("roberta", Task.FILL_MASK, layers=1))
    text = read_text_spec(zoo.load(directory, SECTION).path / "text.json")
    assert (text.pad_id, text.mask_id, text.sources["pad_id"]) == (1, 4, "config.json: pad_token_id")
    edit(directory / "config.json", pad_token_id=None)
    text = read_text_spec(zoo.load(directory, SECTION).path / "text.json")
    assert (text.pad_id, text.sources["pad_id"]) == (1, "tokenizer.json: pad_token")


def test_padding_and_truncation_of_training_are_not_the_models(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    import tokenizers

    directory = copy_of(CLASSIFIER)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(directory / "tokenizer.json"))
    loaded = zoo.load(directory, SECTION)
    found = Tokenizer(loaded.path / "tokenizer.json", read_text_spec(loaded.path / "text.json")).encode("one two")
    assert found.ids.tolist() == zoo.original(CLASSIFIER).tokens("one two")["input_ids"][0].tolist()


def old_kind(directory: Path, architecture: str) -> Callable[[str], list[int]]:
    """Replace `tokenizer.json` by the files of the slow tokenizer; returns another implementation's tokens, special ones left out."""
    path = directory / "tokenizer.json"
    import tokenizers

    fast = tokenizers.Tokenizer.from_file(str(path))
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    path.unlink()
    if architecture == "bert":
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

        (directory / "vocab.txt").write_text("\n".join(sorted(model["vocab"], key=model["vocab"].get)) + "\n", encoding="utf-8")
        slow = BertTokenizerLegacy(str(directory / "vocab.txt"))  # BERT's own Python, not the tokenizers library
        return lambda text: slow(text, add_special_tokens=False)["input_ids"]
    if architecture in {"mpnet", "roberta"}:
        if architecture == "mpnet":
            (directory / "vocab.txt").write_text("\n".join(sorted(model["vocab"], key=model["vocab"].get)) + "\n", encoding="utf-8")
        else:
            (directory / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
            (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n", encoding="utf-8")
        return lambda text: fast.encode(text, add_special_tokens=False).ids
    import sentencepiece

    first = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "user_defined_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=420, character_coverage=0.98,
                                             minloglevel=2, **(first if architecture == "albert" else {"unk_id": 0, "bos_id": 1, "eos_id": 2}))
    (directory / ("spiece.model" if architecture == "albert" else "sentencepiece.bpe.model")).write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    if architecture == "albert":
        return lambda text: processor.encode(text)
    # fairseq counts its own special tokens first; SentencePiece's unknown, 0, is 3 there.
    shift = {"xlm-roberta": 1, "camembert": 4}[architecture]
    return lambda text: [3 if number == 0 else number + shift for number in processor.encode(text)]


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "roberta", "albert", "camembert", "xlm-roberta"])
def test_tokenizers_of_the_old_kind(zoo: Zoo, copy_of: Callable[[Case], Path], architecture: str) -> None:
    directory = copy_of(Case(architecture, Task.FEATURE_EXTRACTION, layers=1))
    other = old_kind(directory, architecture)
    loaded = zoo.load(directory, SECTION)
    spec = read_text_spec(loaded.path / "text.json")
    tokenizer = Tokenizer(loaded.path / "tokenizer.json", spec)
    count = 0
    for text in (*TEXTS[33:160], "two  blanks"):
        text = text.lower() if architecture == "albert" else text  # its normalization is SentencePiece's only for what is in lower case
        found, wanted = tokenizer.encode(text).ids.tolist(), other(text)
        if not text.isascii() or len(wanted) > MAX_LENGTH - 2:
            continue
        assert found[1:-1] == wanted, text
        count += 1
    assert count > 50
    assert spec.mask_id is not None
    assert np.array_equal(tokenizer.encode("").ids, [found[0], found[-1]])


def test_a_tokenizer_that_does_not_load(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(ENCODER)
    text = (directory / "tokenizer.json").read_text(encoding="utf-8")
    for damaged in (text[:1000], "{}", text.replace('"WordPiece"', '"WordBits"')):
        (directory / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(CheckpointError, match="tokenizer does not load"):
            zoo.load(directory, SECTION)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        zoo.load(directory, SECTION)
    (directory / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="tokenizer does not load"):
        zoo.load(directory, SECTION)


def load_model(zoo: Zoo, directory: Path, task: Task | None = None) -> Any:
    from edgeexport.converters._task_model import load_model

    view = zoo.load(directory, ModelSection(source="m", task=task))
    return load_model(view.path, view.spec.require_task())


@pytest.mark.parametrize(("case", "dropped"), [
    (CLASSIFIER, "classifier.weight"), (CLASSIFIER, "bert.pooler.dense.weight"), (CLASSIFIER, "bert.encoder.layer.1.output.dense.bias"),
    (Case("bert", Task.QUESTION_ANSWERING, layers=1), "qa_outputs.bias"),
    (Case("roberta", Task.FILL_MASK, layers=1), "lm_head.dense.weight"), (ENCODER, "encoder.layer.0.output.dense.weight")], ids=str)
def test_missing_weights(zoo: Zoo, copy_of: Callable[[Case], Path], case: Case, dropped: str) -> None:
    """A classifier answers through its pooler; a random one there is as wrong as a random head."""
    directory = copy_of(case)
    edit_weights(directory, lambda weights: {name: value for name, value in weights.items() if name != dropped})
    with pytest.raises(CheckpointError) as caught:
        load_model(zoo, directory)
    assert "Weights are missing" in str(caught.value) and dropped in str(caught.value)


def test_a_bare_encoder_needs_no_pooler(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(ENCODER)
    edit_weights(directory, lambda weights: {name: value for name, value in weights.items() if "pooler" not in name})
    model = load_model(zoo, directory)
    assert model.config.model_type == "bert"
    # The random one in its place is written where the model is made smaller: two builds must have the same.
    again = load_model(zoo, directory)
    assert torch.equal(model.pooler.dense.weight, again.pooler.dense.weight)
    before = torch.get_rng_state()
    load_model(zoo, directory)
    assert torch.equal(before, torch.get_rng_state())  # which training goes on from


def test_weights_of_another_shape(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(CLASSIFIER)
    edit(directory / "config.json", hidden_size=64)
    with pytest.raises(CheckpointError, match="cannot load"):
        load_model(zoo, directory)


def test_a_task_without_a_head(zoo: Zoo) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(zoo.directory(ENCODER)).spec(ModelSection(source="m", task=Task.TEXT_CLASSIFICATION))
    assert "BertModel" in str(caught.value) and "build it for feature-extraction" in str(caught.value)
    # Of a model with a head one may want the vectors.
    assert read_checkpoint(zoo.directory(CLASSIFIER)).task(Task.SENTENCE_SIMILARITY) is Task.SENTENCE_SIMILARITY
    assert load_model(zoo, zoo.directory(CLASSIFIER), Task.SENTENCE_SIMILARITY).config.model_type == "bert"


def test_electras_discriminator_fills_no_mask(tmp_path: Path) -> None:
    import transformers

    directory = write_checkpoint(tmp_path / "m", Case("electra", Task.FEATURE_EXTRACTION, layers=1))
    config = transformers.AutoConfig.from_pretrained(directory)
    transformers.ElectraForPreTraining(config).save_pretrained(directory)
    checkpoint = read_checkpoint(directory)
    assert checkpoint.config["architectures"] == ["ElectraForPreTraining"]
    assert checkpoint.task(None) is Task.FEATURE_EXTRACTION
    with pytest.raises(CheckpointError, match="cannot do fill-mask"):
        checkpoint.task(Task.FILL_MASK)


def test_weights_in_shards(zoo: Zoo, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", CLASSIFIER)
    original = zoo.original(CLASSIFIER)
    (directory / "model.safetensors").unlink()
    original.model.save_pretrained(directory, max_shard_size="60KB")
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(shards) > 2
    checkpoint = read_checkpoint(directory)
    assert checkpoint.parameters == read_checkpoint(zoo.directory(CLASSIFIER)).parameters
    assert set(shards) < set(checkpoint.sizes)
    loaded = load_model(zoo, directory)
    assert all(np.array_equal(a.detach(), b.detach()) for a, b in zip(loaded.parameters(), original.model.parameters(), strict=True))
    (directory / shards[1]).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(directory)
    assert shards[1] in str(caught.value)
    (directory / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(directory)


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        found: Checkpoint = read_checkpoint(directory)
        found.spec(SECTION)
    return str(caught.value)


def test_damaged_weights(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(ENCODER)
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    for data, told in ((whole[:-1], "cut off"), (whole[:1000], "ends within its header"), (whole[:5], "ends within its header"), (b"", "ends within"),
                       (whole + b"x", "damaged"), (whole[:8] + b"?" + whole[9:], "header is not readable")):
        weights.write_bytes(data)
        assert told in refused(directory)


def test_pickled_weights_are_never_loaded(copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(ENCODER)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in refused(directory)
    (directory / "pytorch_model.bin").unlink()
    assert "has no weights" in refused(directory)


def test_not_a_checkpoint(tmp_path: Path, copy_of: Callable[[Case], Path]) -> None:
    assert "There is no directory" in refused(tmp_path / "nowhere")
    directory = copy_of(ENCODER)
    edit(directory / "config.json", model_type="t5")
    assert "'t5' is not supported" in refused(directory)
    edit(directory / "config.json", model_type="gpt2")
    assert "cannot be built for feature-extraction" in refused(directory)
    edit(directory / "config.json", model_type=None)
    assert "no model_type" in refused(directory)
    (directory / "config.json").write_text("{")
    assert "not valid JSON" in refused(directory)
    (directory / "config.json").unlink()
    assert "has no config.json" in refused(directory)


def test_a_file_that_changes_while_it_is_read(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(ENCODER)
    checkpoint = read_checkpoint(directory)
    source = View(directory, Spec(kind=Kind.SOURCE, facts={"digests": dict.fromkeys(checkpoint.sizes, "0" * 64)}))
    step = find_step("load_checkpoint")(spec=checkpoint.spec(SECTION), text=checkpoint.text_spec(SECTION).as_dict())
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        zoo.run(step, {"source": source})


def test_code_that_nothing_names_changes_nothing(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    """Scripts beside a checkpoint are left alone; where its code is trusted, they are kept, and still run by nobody."""
    directory = copy_of(CLASSIFIER)
    for name in ("train.py", "LICENSE.py"):
        (directory / name).write_text("raise SystemExit('was run')\n", encoding="utf-8")
    assert not any(name.endswith(".py") for name in read_checkpoint(directory).sizes)
    assert {name for name in read_checkpoint(directory, trusted=True).sizes if name.endswith(".py")} == {"train.py", "LICENSE.py"}
    (artifact := zoo.place("with-scripts")).rmdir()
    shutil.copytree(directory, artifact)
    assert not brings_code(artifact)
    edit(artifact / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", None]})
    assert brings_code(artifact) and not brings_model(artifact)
    edit(artifact / "config.json", auto_map={"AutoModel": "own.Model"})
    assert brings_model(artifact)


def test_files_that_are_no_part_of_a_checkpoint_stay_out(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(EMBEDDER)
    for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin", "notes.md", "onnx/model.onnx"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"x")
    (directory / "README.md").write_text("---\nlicense: 'apache-2.0'\n---\nA model.\n")
    (directory / "LICENSE").write_text("free")
    loaded = zoo.load(directory, SECTION)
    names = {path.relative_to(loaded.path).as_posix() for path in loaded.path.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json",
                     "1_Pooling/config.json", "README.md", "LICENSE", "text.json"}
    assert loaded.spec.facts["licence"] == "apache-2.0"
