"""Tiny seeded checkpoints of every architecture and task, as the hub has them: config, safetensors, tokenizer files of the v4 layout."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgeexport.artifact import Task
from edgeexport.probes import probe_set

MAX_LENGTH = 32
LENGTHS = (16, 32)
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")
CLASSES = ("bad", "fair", "good")
SPREAD = 3.0
WORDPIECE, BPE, UNIGRAM = "wordpiece", "bpe", "unigram"


@dataclass(frozen=True)
class Architecture:
    """What sets an architecture's tiny checkpoint apart.

    Attributes:
        tokenizer_class: as tokenizer_config.json of such a checkpoint names it.
        kind: of the tokenizer's model.
        special: role → special token.
        positions: size of the table of positions.
        config: keys of config.json.
        gain: of the random matrices; without normalization layers a gain of 1 grows from layer to layer.
    """

    tokenizer_class: str
    kind: str
    special: dict[str, str]
    positions: int = MAX_LENGTH
    config: dict[str, Any] = field(default_factory=dict)
    gain: float = 1.3


BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>",
                  "mask_token": "<mask>"}
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}

ARCHITECTURES = {
    "bert": Architecture("BertTokenizer", WORDPIECE, BERT_TOKENS, positions=48, config=SIZES),
    "distilbert": Architecture("DistilBertTokenizer", WORDPIECE, BERT_TOKENS, config={"dim": 32, "n_heads": 2, "hidden_dim": 64}),
    "roberta": Architecture("RobertaTokenizer", BPE, ROBERTA_TOKENS, positions=MAX_LENGTH + 2, config={**SIZES, "type_vocab_size": 1}),
    "xlm-roberta": Architecture("XLMRobertaTokenizer", UNIGRAM, ROBERTA_TOKENS, positions=MAX_LENGTH + 2, config={**SIZES, "type_vocab_size": 1}),
    "camembert": Architecture("CamembertTokenizer", UNIGRAM, ROBERTA_TOKENS, positions=50, config={**SIZES, "type_vocab_size": 1}),
    "albert": Architecture("AlbertTokenizer", UNIGRAM, {**BERT_TOKENS, "pad_token": "<pad>", "unk_token": "<unk>"},
                           config={**SIZES, "embedding_size": 16}),
    "mobilebert": Architecture("MobileBertTokenizer", WORDPIECE, BERT_TOKENS, gain=0.7, config={
        **SIZES, "hidden_size": 64, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2}),
    "electra": Architecture("ElectraTokenizer", WORDPIECE, BERT_TOKENS, config={**SIZES, "embedding_size": 16}),
    "mpnet": Architecture("MPNetTokenizer", WORDPIECE, {**ROBERTA_TOKENS, "unk_token": "[UNK]"}, positions=MAX_LENGTH + 2, config=SIZES),
}
MODEL_CLASSES = {
    Task.FEATURE_EXTRACTION: "AutoModel",
    Task.SENTENCE_SIMILARITY: "AutoModel",
    Task.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
    Task.FILL_MASK: "AutoModelForMaskedLM",
    Task.TEXT_GENERATION: "AutoModelForCausalLM",
}
TEXTS = tuple(row.text for row in probe_set(Task.FEATURE_EXTRACTION).rows)


@dataclass(frozen=True)
class Case:
    """A checkpoint to be made.

    Attributes:
        architecture: a key of ARCHITECTURES.
        task: decides the head.
        pooling: mode of sentence-transformers' Pooling; such a checkpoint has a modules.json.
        normalize: whether modules.json ends with Normalize.
        layers: number of transformer layers.
    """

    architecture: str
    task: Task
    pooling: str | None = None
    normalize: bool = False
    layers: int = 2

    def __str__(self) -> str:
        layers = "" if self.layers == 2 else f"{self.layers}-layer"
        parts = [self.architecture, self.task, layers, self.pooling, "normalize" if self.normalize else ""]
        return "-".join(part for part in parts if part)


def write_checkpoint(directory: Path, case: Case, **config: Any) -> Path:
    """A checkpoint with seeded random weights, by which the outputs vary from text to text."""
    import transformers

    directory.mkdir(parents=True)
    shape = ARCHITECTURES[case.architecture]
    vocabulary = write_tokenizer(directory, case.architecture)
    labels = {Task.TOKEN_CLASSIFICATION: ENTITIES, Task.TEXT_CLASSIFICATION: CLASSES}.get(case.task)
    if labels:
        config = {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}} | config
    settings = transformers.AutoConfig.for_model(
        case.architecture, vocab_size=len(vocabulary), max_position_embeddings=shape.positions, pad_token_id=vocabulary[shape.special["pad_token"]],
        **shape.config | {"num_hidden_layers": case.layers} | config)
    model = getattr(transformers, MODEL_CLASSES[case.task]).from_config(settings).eval()
    randomize(model, shape.gain)
    if case.task in {Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING}:
        spread_out(model, len(vocabulary))
    model.save_pretrained(directory)
    if case.pooling is not None:
        write_modules(directory, case.pooling, case.normalize)
    return directory


def randomize(model: Any, gain: float) -> None:
    """Weights by which attention is uneven, positions matter, and no bias or normalization is neutral."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter += 0.2 * noise
            else:
                parameter.copy_(gain * noise / math.sqrt(parameter.shape[-1]))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))


def spread_out(model: Any, vocabulary: int) -> None:
    """Scale and shift the last layer so that each logit has a standard deviation of SPREAD over texts, and a mean of 0."""
    import torch

    head = [module for name, module in model.named_modules()
            if name.startswith(("classifier", "qa_outputs")) and isinstance(module, torch.nn.Linear)][-1]
    ids = torch.randint(5, vocabulary, (64, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(input_ids=ids)
        logits = torch.cat([found[name].reshape(64, -1, head.out_features if name == "logits" else 1)
                            for name in ("logits", "start_logits", "end_logits") if name in found], dim=-1)
        scale = SPREAD / logits.std(dim=0).mean()
        head.weight *= scale
        head.bias.copy_((head.bias - logits.mean(dim=(0, 1))) * scale)


def write_modules(directory: Path, pooling: str, normalize: bool) -> None:
    """The files that make a checkpoint one of sentence-transformers, as version 2 wrote them."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    (directory / "modules.json").write_text(json.dumps([
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(modules)]))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_LENGTH, "do_lower_case": False}))
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(
        {"word_embedding_dimension": 32}
        | {f"pooling_mode_{flag}": flag.removesuffix("_token").removesuffix("_tokens") == pooling for flag in flags}))


def write_tokenizer(directory: Path, architecture: str) -> dict[str, int]:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns the vocabulary."""
    shape = ARCHITECTURES[architecture]
    tokenizer = {WORDPIECE: wordpiece, BPE: bpe, UNIGRAM: unigram}[shape.kind](shape)
    from tokenizers import AddedToken

    mask = shape.special["mask_token"]
    tokenizer.add_special_tokens([*dict.fromkeys(token for token in shape.special.values() if token != mask),
                                  AddedToken(mask, lstrip=True, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": shape.tokenizer_class, "model_max_length": MAX_LENGTH, **shape.special,
        "mask_token": {"__type": "AddedToken", "content": mask, "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}}))
    return dict(tokenizer.get_vocab())


@cache
def words() -> Counter[str]:
    """Words of the probe texts, with how often they come."""
    from tokenizers import normalizers, pre_tokenizers

    lower, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return Counter(word for text in TEXTS for word, _ in split.pre_tokenize_str(lower.normalize_str(text)))


def common_words() -> list[str]:
    """Words that come at least twelve times, most common first."""
    return [word for word, count in sorted(words().items(), key=lambda item: (-item[1], item[0])) if count >= 12]


def characters() -> list[str]:
    """Characters that come at least five times; the rest is unknown."""
    counts: Counter[str] = Counter()
    for word, count in words().items():
        for character in word:
            counts[character] += count
    return sorted(character for character, count in counts.items() if count >= 5)


def wordpiece(shape: Architecture) -> Any:
    """A WordPiece tokenizer as BERT's and MPNet's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = [*shape.special.values(), *characters(), *(f"##{character}" for character in characters()), *common_words(),
              "##ing", "##ed", "##er", "##s"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=shape.special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    start, end = shape.special["cls_token"], shape.special["sep_token"]
    between = f"{end}:0" if start == "[CLS]" else f"{end}:0 {end}:0"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start}:0 $A:0 {end}:0", pair=f"{start}:0 $A:0 {between} $B:1 {end}:1",
                                                             special_tokens=[(token, vocabulary[token]) for token in (start, end)])
    return tokenizer


def bpe(shape: Architecture) -> Any:
    """A byte-level BPE tokenizer as RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=420, special_tokens=list(dict.fromkeys(shape.special.values())),
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")),
                                                            add_prefix_space=False)
    return tokenizer


def unigram(shape: Architecture) -> Any:
    """A Unigram tokenizer as SentencePiece makes them for ALBERT, CamemBERT and XLM-RoBERTa."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    counts = words()
    total = sum(counts.values())
    pieces = [(f"▁{word}", math.log(counts[word] / total)) for word in common_words()]
    pieces += [(piece, math.log(0.5 / total) * (1 + number / 1000)) for number, piece in enumerate(["▁", *characters()])]
    albert = shape.special["cls_token"] == "[CLS]"
    first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"] if albert else ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [(token, 0.0) for token in first] + pieces + ([] if albert else [("<mask>", 0.0)])
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=first.index("<unk>")))
    start, end = shape.special["cls_token"], shape.special["sep_token"]
    if albert:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
                                                     normalizers.StripAccents(), normalizers.Lowercase()])
    else:
        tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    pair = f"{start}:0 $A:0 {end}:0 $B:1 {end}:1" if albert else f"{start} $A {end} {end} $B {end}"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", pair=pair,
                                                             special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)])
    return tokenizer
