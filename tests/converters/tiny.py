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
LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")
# Of the task's own layers, so that classes differ clearly.
HEAD_GAIN = 4.0
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
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

ARCHITECTURES = {
    "bert": Architecture("BertTokenizer", WORDPIECE, BERT_TOKENS, positions=48, config=SIZES),
    "distilbert": Architecture("DistilBertTokenizer", WORDPIECE, BERT_TOKENS, config={"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
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
}
TEXTS = tuple(row.text for row in probe_set(Task.FEATURE_EXTRACTION).rows)


def write_checkpoint(directory: Path, architecture: str, task: Task, *, seed: int = 0, **config: Any) -> Path:
    """A checkpoint with random weights that make its outputs vary."""
    import torch
    import transformers

    directory.mkdir(parents=True)
    shape = ARCHITECTURES[architecture]
    vocabulary = write_tokenizer(directory, architecture)
    ids = {key.replace("_token", "_token_id"): vocabulary[token] for key, token in shape.special.items() if key not in {"unk_token", "mask_token"}}
    settings = transformers.AutoConfig.for_model(architecture, vocab_size=len(vocabulary), max_position_embeddings=shape.positions,
                                                 **shape.config, **{"pad_token_id": ids["pad_token_id"]}, **config)
    model = getattr(transformers, MODEL_CLASSES[task]).from_config(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter += 0.2 * noise
            elif "embeddings." in name or "relative_attention_bias" in name:
                parameter.copy_(noise)
            else:
                head = task is not Task.FILL_MASK and not name.startswith(f"{model.base_model_prefix}.") and model.base_model_prefix in vars(model)["_modules"]
                parameter.copy_((HEAD_GAIN if head else shape.gain) * noise / math.sqrt(parameter.shape[-1]))
    model.save_pretrained(directory)
    return directory


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

    pieces = [*shape.special.values(), *characters(), *(f"##{character}" for character in characters()), *common_words(), "##ing", "##ed", "##er", "##s"]
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
