"""The tokenizer that a GGUF file describes in its metadata.

What the file says decides: which token begins and ends a text, whether one is put before it, which are special. Transformers' own reading puts a
token before every text, and takes another for its end, where SmolLM2's file says neither (5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREFIX = "tokenizer.ggml"
# Values of token_type. Source: enum llama_token_type in llama.h.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"

# How texts are cut before pairs are merged, by the name in `tokenizer.ggml.pre`. Source: the tokenizer.json of the families' own checkpoints.
CUT_BY_GPT2 = ("default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jina-en")
CUT_BY_GPT2_AND_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUT_BY_PATTERN = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3"), _WORDS % r"\p{N}{1,3}"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), _WORDS % r"\p{N}"),
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
}
# Qwen's write an accent and its letter as one character first.
COMPOSED = frozenset({"qwen2"})
# These put a token before a text even where the file does not say so. Source: llama.cpp's reading of such files.
BEGUN = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3"})
# These take a word that is a token as it is, whatever the merges make of it.
WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3"})

# Phi-3's special tokens take the blanks and line ends after them, which no file says; but for these. Source: llama.cpp's reading (llama-vocab.cpp).
WITHOUT_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer.

    Args:
        metadata: of the file.

    Raises:
        CheckpointError: it has none, one of an unknown kind, or one without its merges.
    """
    kind, tokens = metadata.get(f"{PREFIX}.model"), metadata.get(f"{PREFIX}.tokens")
    if kind is None or not tokens:
        raise CheckpointError("The GGUF file has no tokenizer.", why=f"{PREFIX}.{'model' if kind is None else 'tokens'} is not there",
                              hint="convert the original checkpoint again, with its tokenizer")
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in makers:
        raise CheckpointError(f"The GGUF file's tokenizer is of the kind '{kind}'.", why=f"known are {', '.join(makers)}",
                              hint="name the original checkpoint as source")
    tokenizer = makers[kind](metadata, tokens)
    types = metadata.get(f"{PREFIX}.token_type") or [NORMAL] * len(tokens)
    _add_special_tokens(tokenizer, tokens, types, str(metadata.get("general.architecture")))
    _begin_and_end(tokenizer, metadata, tokens)
    return tokenizer


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Name → id of the tokens that begin, end and fill up texts, where the file names them, such as ``eos_token_id``."""
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    found = {name: int(metadata.get(f"{PREFIX}.{key}_token_id", -1)) for key, name in names.items()}
    return {name: number for name, number in found.items() if 0 <= number < len(metadata.get(f"{PREFIX}.tokens") or [])}


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name → token of those that the file names, such as ``eos_token``."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    tokens = metadata.get(f"{PREFIX}.tokens") or []
    found = {name: metadata.get(f"{PREFIX}.{key}_token_id") for key, name in names.items()}
    return {name: tokens[number] for name, number in found.items() if number is not None and 0 <= number < len(tokens)}


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Merged pairs of bytes, as GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    merges = metadata.get(f"{PREFIX}.merges")
    if not merges:
        raise CheckpointError("The GGUF file's tokenizer lacks its merges.", why=f"{PREFIX}.merges is not there",
                              hint="convert the original checkpoint again, with its tokenizer")
    cut = metadata.get(f"{PREFIX}.pre", "default")
    before: Any
    if cut == "default" and metadata.get("general.architecture", "gpt2") != "gpt2":
        raise CheckpointError("The GGUF file does not say how its tokenizer cuts texts.", why=f"{PREFIX}.pre is not there: the file is old",
                              hint="convert the original checkpoint again, or name it as source")
    if cut in CUT_BY_GPT2:
        before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif cut in CUT_BY_GPT2_AND_DIGITS:
        before = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif cut in CUT_BY_PATTERN:
        before = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CUT_BY_PATTERN[cut]), "isolated"),
                                          pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        raise CheckpointError(f"The GGUF file's tokenizer cuts texts as '{cut}' does.", why="how that is done is not known here",
                              hint="name the original checkpoint as source")
    pairs = [(one, two) for one, _, two in (merge.partition(" ") for merge in merges)]
    model = BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=pairs, ignore_merges=cut in WORDS_FIRST)
    tokenizer = Tokenizer(model)
    if cut in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Merged pairs of characters by their scores, as SentencePiece's BPE.

    The best pair is the one whose token has the highest score; so the merges are all pairs of tokens that make a token, by its score.
    Source: Kudo and Richardson 2018, SentencePiece; `bpe_model.cc`.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    scores = metadata.get(f"{PREFIX}.scores")
    if not scores:
        raise CheckpointError("The GGUF file's tokenizer lacks its scores.", why=f"{PREFIX}.scores is not there",
                              hint="convert the original checkpoint again, with its tokenizer")
    numbers = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            one, two = token[:cut], token[cut:]
            if one in numbers and two in numbers:
                merges.append((-score, numbers[one], numbers[two], one, two))
    unknown = special_tokens(metadata).get("unk_token")
    tokenizer = Tokenizer(BPE(vocab=numbers, merges=[(one, two) for *_, one, two in sorted(merges)], unk_token=unknown, fuse_unk=True,
                              byte_fallback=True))
    blank_first = bool(metadata.get(f"{PREFIX}.add_space_prefix", True))
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend(SPACE)] if blank_first else []), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           *([decoders.Strip(" ", 1, 0)] if blank_first else [])])
    return tokenizer


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int], form: str) -> None:
    from tokenizers import AddedToken

    def takes_blanks(token: str) -> bool:
        return form == "phi3" and token not in WITHOUT_BLANKS

    of_type = {kind: [AddedToken(token, special=kind != USER_DEFINED, normalized=False, rstrip=kind == CONTROL and takes_blanks(token))
                      for token, own in zip(tokens, types, strict=True) if own == kind]
               for kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    tokenizer.add_special_tokens(of_type[UNKNOWN] + of_type[CONTROL])
    tokenizer.add_tokens(of_type[USER_DEFINED])


def _begin_and_end(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Put the tokens before and after a text that the file asks for; where it says nothing, SentencePiece's and Llama 3's have one before."""
    from tokenizers import processors

    before = metadata.get(f"{PREFIX}.add_bos_token", metadata[f"{PREFIX}.model"] == "llama" or metadata.get(f"{PREFIX}.pre") in BEGUN)
    after = metadata.get(f"{PREFIX}.add_eos_token", False)
    named = special_tokens(metadata)
    begin, end = (named.get("bos_token") if before else None), (named.get("eos_token") if after else None)
    used = {token: tokens.index(token) for token in (begin, end) if token is not None}
    if used:
        form = [*([f"{begin}:0"] if begin else []), "$A:0", *([f"{end}:0"] if end else [])]
        second = [part.replace("$A", "$B").replace(":0", ":1") for part in form]
        tokenizer.post_processor = processors.TemplateProcessing(single=form, pair=[*form, *second], special_tokens=list(used.items()))
