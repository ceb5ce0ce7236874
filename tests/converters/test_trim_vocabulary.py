"""Smaller vocabularies: the same text in smaller pieces, the same answers where no piece changed, nothing unknown that was known."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from architectures import SOME
from edgeexport.converters._kept_tokens import choose, demands
from edgeexport.converters._task_model import load_model
from edgeexport.converters._tokenizer_file import TokenizerFile
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Original
from safetensors.torch import load_file
from tiny import ARCHITECTURES, BPE, MAX_LENGTH, TEXTS, UNIGRAM, WORDPIECE, Case, write_tokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from zoo import Zoo, as_rows

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.dataset import Row
from edgeexport.errors import CheckpointError, DataError, EdgeExportError, RecipeError
from edgeexport.recipe import ModelSection
from edgeexport.session import Payload, Session
from edgeexport.session.text import Tokenizer, read_text_spec
from edgeexport.step import Refusal, View

SIZES = {WORDPIECE: 400, BPE: 330, UNIGRAM: 300}
KIND_OF = {WORDPIECE: "bert", BPE: "roberta", UNIGRAM: "xlm-roberta"}
# Heads with tables of their own, and one of every other kind.
CASES = [Case(architecture, Task.FILL_MASK, layers=1) for architecture in ARCHITECTURES] + [case for case in SOME if case.task is not Task.FILL_MASK]
UNKNOWN = {"[UNK]", "<unk>"}


def size_for(case: Case) -> int:
    return SIZES[ARCHITECTURES[case.architecture].kind]


def trimmed(zoo: Zoo, case: Case) -> View:
    return zoo.trimmed(case, size_for(case))


def library(view: View) -> tokenizers.Tokenizer:
    """The tokenizer as anybody reads it, uncut."""
    tokenizer = tokenizers.Tokenizer.from_file(str(view.path / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


def kept_rows(before: View, after: View) -> list[int]:
    """The old id of each new one."""
    old, new = library(before).get_vocab(), library(after).get_vocab()
    assert sorted(new.values()) == list(range(len(new)))
    return [old[token] for token in sorted(new, key=new.__getitem__)]


def spelled(tokens: list[str]) -> str:
    """The text of tokens in the tokenizer's own characters."""
    return "".join(token.removeprefix("##") for token in tokens)


def unknown(encoding: tokenizers.Encoding, tokenizer: tokenizers.Tokenizer) -> list[tuple[int, int]]:
    """The places of what is unknown, in characters of the text."""
    return [place for number, place in zip(encoding.ids, encoding.offsets, strict=True) if tokenizer.id_to_token(number) in UNKNOWN]


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | changes), encoding="utf-8")


def run(zoo: Zoo, view: View, size: int, *rows: Row) -> View:
    return zoo.run(find_step("trim_vocabulary")(size=size, datasets=("mine",) if rows else ()),
                   {"checkpoint": view, **({"mine": zoo.dataset("mine", rows)} if rows else {})})


@pytest.fixture
def copy_of(zoo: Zoo, tmp_path: Path) -> Callable[[Case], Path]:
    """A checkpoint that a test may change."""
    return lambda case: Path(shutil.copytree(zoo.directory(case), tmp_path / "checkpoint"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_text_is_spelled_as_before(zoo: Zoo, architecture: str) -> None:
    case = Case(architecture, Task.FILL_MASK, layers=1)
    before, after = zoo.loaded(case), trimmed(zoo, case)
    rows = kept_rows(before, after)
    assert len(rows) == size_for(case) == after.spec.facts["vocabulary"] < len(library(before).get_vocab())
    old, new, kept = library(before), library(after), set(rows)
    unchanged = 0
    for text in TEXTS:
        was, now = old.encode(text), new.encode(text)
        assert spelled(now.tokens) == spelled(was.tokens)
        assert unknown(now, new) == unknown(was, old)
        if kept.issuperset(was.ids):
            assert now.tokens == was.tokens
            assert [rows[number] for number in now.ids] == was.ids
            unchanged += 1
    assert 30 < unchanged < len(TEXTS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_gives_the_same_ids(zoo: Zoo, architecture: str) -> None:
    case = Case(architecture, Task.FILL_MASK, layers=1)
    view = trimmed(zoo, case)
    original, spec = Original(view.path, case.task), read_text_spec(view.path / "text.json")
    tokenizer = Tokenizer(view.path / "tokenizer.json", spec)
    for text in TEXTS:
        assert tokenizer.encode(text).ids.tolist() == original.tokens(text)["input_ids"][0].tolist(), text
    assert tokenizer.encode(TEXTS[50], TEXTS[60]).ids.tolist() == original.tokens(TEXTS[50], TEXTS[60])["input_ids"][0].tolist()
    assert spec.mask_id == original.tokenizer.mask_token_id == original.tokenizer(original.tokenizer.mask_token)["input_ids"][1]
    assert spec.pad_id == original.tokenizer.pad_token_id == original.model.config.pad_token_id
    for name, token in original.tokenizer.special_tokens_map.items():
        # Where Transformers' class has a special token of its own that the checkpoint lacks, it stands behind the others, as it did before.
        assert token in library(view).get_vocab() or token not in zoo.original(case).tokenizer.backend_tokenizer.get_vocab(), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_texts_whose_tokens_stay_get_the_same_answers(zoo: Zoo, case: Case) -> None:
    before, after = zoo.loaded(case), trimmed(zoo, case)
    rows = kept_rows(before, after)
    old, new = Original(before.path, case.task), Original(after.path, case.task)
    for model in (old.model, new.model):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # where a file is mapped to memory, products are rounded by its place there
    count = 0
    for text in [*TEXTS[:60], *(" ".join(text.split()[:4]) for text in TEXTS[60:])]:
        pair = (TEXTS[5],) if case.task is Task.QUESTION_ANSWERING else ()
        if not set(rows).issuperset(old.tokens(text, *pair)["input_ids"][0].tolist()):
            continue
        expected, found = old.outputs(text, *pair), new.outputs(text, *pair)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            wanted = value[:, :, rows] if case.task is Task.FILL_MASK else value
            assert np.abs(found[name] - wanted).max() <= 1e-6 * max(1.0, np.abs(wanted).max())
        count += 1
        if count == 40:
            break
    assert count >= 20


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_are_rows_of_the_original(zoo: Zoo, case: Case) -> None:
    before, after = zoo.loaded(case), trimmed(zoo, case)
    rows = kept_rows(before, after)
    old, new = (load_file(view.path / "model.safetensors") for view in (before, after))
    assert old.keys() == new.keys()
    changed = 0
    for name, value in new.items():
        if value.shape == old[name].shape:
            assert torch.equal(value, old[name])
        else:
            dimension = next(place for place, length in enumerate(value.shape) if length != old[name].shape[place])
            assert torch.equal(value, old[name].index_select(dimension, torch.tensor(rows)))
            changed += 1
    assert changed >= (2 if case.task is Task.FILL_MASK else 1)
    assert after.spec.parameters == sum(parameter.numel() for parameter in load_model(after.path, case.task).parameters())
    assert after.spec.parameters < before.spec.parameters
    assert after.spec.bytes == sum(path.stat().st_size for path in after.path.iterdir())
    assert after.spec.task is case.task
    # As Transformers would have written it, so that it loads there without anything of ours.
    assert "pruned_shapes" not in json.loads((after.path / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KIND_OF)
def test_dropped_tokens_fall_back_to_pieces_of_theirs(zoo: Zoo, kind: str) -> None:
    case = Case(KIND_OF[kind], Task.FILL_MASK, layers=1)
    old, new = library(zoo.loaded(case)), library(trimmed(zoo, case))
    dropped = old.get_vocab().keys() - new.get_vocab().keys()
    assert len(dropped) > 80
    for token in dropped:
        text = f"a{token[2:]}" if token.startswith("##") else token
        pieces = [piece.value for piece in new.model.tokenize(text)]
        assert len(pieces) > 1
        assert spelled(pieces) == text
    for token in new.get_vocab().keys() - UNKNOWN:  # what stays can still come
        if not token.startswith("##") and [piece.value for piece in old.model.tokenize(token)] == [token]:
            assert [piece.value for piece in new.model.tokenize(token)] == [token]


@cache
def pair_of_tokenizers(root: Path, kind: str) -> tuple[TokenizerFile, TokenizerFile]:
    directory = root / kind
    directory.mkdir()
    write_tokenizer(directory, KIND_OF[kind])
    before = TokenizerFile.read(directory)
    kept = choose(demands(before, before.added), before.named(), SIZES[kind] - 20, {}, {})
    return before, before.with_tokens({old: new for new, old in enumerate(kept)})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


# Characters that the tokenizers know, and any others.
PARTS = st.one_of(st.sampled_from("".join(TEXTS)), st.characters(exclude_categories=["Cs"]), st.sampled_from(TEXTS))
STRINGS = st.lists(PARTS, max_size=30).map("".join)


@pytest.mark.parametrize("kind", KIND_OF)
@settings(max_examples=300, deadline=None)
@given(text=STRINGS, pair=st.none() | STRINGS)
def test_any_text(root: Path, kind: str, text: str, pair: str | None) -> None:
    before, after = pair_of_tokenizers(root, kind)
    was, now = before.tokenizer.encode(text, pair), after.tokenizer.encode(text, pair)
    assert spelled(now.tokens) == spelled(was.tokens)
    assert unknown(now, after.tokenizer) == unknown(was, before.tokenizer)
    special = [[(token, kind) for token, kind, mask in zip(found.tokens, found.type_ids, found.special_tokens_mask, strict=True) if mask]
               for found in (was, now)]
    assert special[0] == special[1]
    assert (was.type_ids[0], was.type_ids[-1]) == (now.type_ids[0], now.type_ids[-1])
    if after.ids.keys() >= set(was.tokens):
        assert now.tokens == was.tokens


def some_words(choice: random.Random, characters: str, count: int) -> set[str]:
    return {"".join(choice.choices(characters, k=choice.randint(1, 4))) for _ in range(choice.randint(2, count))}


def wordpiece(choice: random.Random, whole: str) -> tokenizers.Tokenizer:
    """Few pieces; some characters may lack one of their own."""
    splits = choice.random() < 0.7
    pieces = some_words(choice, whole, 10) | {f"##{piece}" for piece in some_words(choice, whole, 12)}
    pieces |= set() if splits else some_words(choice, "a#", 5)
    pieces |= set().union(*({character, f"##{character}"} for character in choice.choice([whole, whole[1:], "b", ""])))
    order = ["[UNK]", *sorted(pieces, key=lambda _: choice.random())]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(order)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if splits else pre_tokenizers.WhitespaceSplit()
    return tokenizer


def unigram(choice: random.Random, whole: str) -> tokenizers.Tokenizer:
    pieces = some_words(choice, whole, 14) | set(choice.choice([whole, whole[1:]]))
    return tokenizers.Tokenizer(models.Unigram(
        [("[UNK]", 0.0)] + [(piece, -20 * choice.random()) for piece in sorted(pieces, key=lambda _: choice.random())], unk_id=0))


def bpe(choice: random.Random, whole: str) -> tokenizers.Tokenizer:
    pieces, merges = list(whole), []
    for _ in range(choice.randint(2, 14)):
        left, right = choice.choice(pieces), choice.choice(pieces)
        if len(left + right) <= 5 and (left, right) not in merges:
            merges.append((left, right))
            pieces += [left + right] if left + right not in pieces else []
    order = ["[UNK]", *sorted(pieces, key=lambda _: choice.random())]
    return tokenizers.Tokenizer(models.BPE({piece: number for number, piece in enumerate(order)}, merges, unk_token="[UNK]",
                                           ignore_merges=choice.random() < 0.3))


@pytest.mark.parametrize("make", [wordpiece, unigram, bpe])
def test_no_vocabulary_makes_a_known_word_unknown(make: Callable[..., tokenizers.Tokenizer]) -> None:
    """Hundreds of odd small vocabularies with any choice of tokens, by every word of three and six characters."""
    choice = random.Random(1)
    words = ["".join(word) for characters, length in (("abc", 3), ("abc", 6), ("ab#", 5)) for word in itertools.product(characters, repeat=length)]
    seen: Counter[str] = Counter()
    for _ in range(400):
        before = TokenizerFile(json.loads(make(choice, "abc").to_str()))
        count = len(before.ids)
        often = {number: choice.randint(0, 4) for number in range(count)}
        try:
            wanted = demands(before, {0})
            kept = choose(wanted, {0}, choice.randint(min(len(wanted.alphabet) + 1, count), count), often, often)
        except CheckpointError as error:
            assert "without making known words unknown" in str(error)
            seen["refused"] += 1
            continue
        after = before.with_tokens({old: new for new, old in enumerate(kept)}, unknown_last=wanted.unknown_last)
        seen["dropped"] += count - len(kept)
        seen["hidden"] += any(len(before.tokenizer.id_to_token(number).removeprefix("##")) > 1 for number in wanted.alphabet)
        for word in choice.sample(words, 300):
            was, now = before.tokenizer.encode(word), after.tokenizer.encode(word)
            lost, left = (sum(end - start for start, end in unknown(found, file.tokenizer)) for found, file in ((was, before), (now, after)))
            assert left <= lost, (word, was.tokens, now.tokens)
            if lost == 0 and set(kept).issuperset(was.ids):
                assert now.tokens == was.tokens, word
                seen["same"] += 1
    assert seen["dropped"] > 500 and seen["same"] > 15_000
    assert make is bpe or seen["hidden"] > 10


def test_frequent_tokens_stay_before_others(zoo: Zoo) -> None:
    """A user's words decide, then the vocabulary's own order."""
    view = zoo.loaded(Case("bert", Task.FILL_MASK, layers=1))
    order = sorted(library(view).get_vocab(), key=library(view).get_vocab().__getitem__)
    alphabet = {token for token in order if len(token.removeprefix("##")) == 1 or token in ARCHITECTURES["bert"].special.values()}
    rare = [token for token in order if token not in alphabet and not token.startswith("##")][-30:]
    rows = as_rows([" ".join(rare), " ".join(rare[:20])])
    bare = run(zoo, view, len(alphabet) + 25, *rows)
    assert library(bare).get_vocab().keys() == alphabet | set(rare[:25])
    wide = run(zoo, view, len(alphabet) + 40, *rows)
    assert library(wide).get_vocab().keys() == alphabet | set(rare) | set([token for token in order if token not in alphabet][:10])
    assert run(zoo, view, len(alphabet) + 10).spec.facts["coverage"]["data"] == {}


def test_coverage_counts_what_the_tokenizers_say(zoo: Zoo) -> None:
    case = Case("albert", Task.FILL_MASK, layers=1)
    before = zoo.loaded(case)
    rows = [Row(id="1", text=TEXTS[100], role="query"), Row(id="2", text=TEXTS[110], text_pair=TEXTS[120]), Row(id="3", text="東京 later later")]
    (directory := zoo.place("with-prefixes")).rmdir()
    shutil.copytree(before.path, directory)
    edit(directory / "text.json", query_prefix="what is this: ", document_prefix="a little one: ")
    after = run(zoo, View(directory, before.spec), 172, *rows)
    old, new = library(before), library(after)
    texts = [("what is this: " + TEXTS[100], None), ("a little one: " + TEXTS[110], TEXTS[120]), ("a little one: 東京 later later", None)]
    was, now = ([[tokenizer.id_to_token(number) for number in tokenizer.encode(*text, add_special_tokens=False).ids] for text in texts]
                for tokenizer in (old, new))
    tokens = [token for text in was for token in text]
    dropped = Counter(token for token in tokens if token not in new.get_vocab())
    found = after.spec.facts["coverage"]
    assert (found["kept"], found["dropped"]) == (172, len(old.get_vocab()) - 172)
    data = found["data"]["mine"]
    assert (data["texts"], data["tokens"]) == (3, len(tokens))
    assert data["kept_share"] == pytest.approx(1 - dropped.total() / len(tokens)) and 0.5 < data["kept_share"] < 1
    assert data["tokens_per_text"] == {"before": len(tokens) / 3, "after": sum(map(len, now)) / 3}
    assert data["unknown"] == {when: sum(text.count("<unk>") for text in texts) for when, texts in (("before", was), ("after", now))}
    assert data["unknown"]["after"] > 0
    assert data["cut"] == {when: sum(len(text) + 2 + (number == 1) > MAX_LENGTH for number, text in enumerate(texts))
                           for when, texts in (("before", was), ("after", now))}
    assert {entry["token"]: entry["count"] for entry in data["dropped"]}.items() <= dropped.items()
    assert [entry["count"] for entry in data["dropped"]] == sorted(dropped.values(), reverse=True)[:8]
    for entry in data["dropped"]:
        assert entry["token"] in spelled(entry["pieces"]) and len(entry["pieces"]) > 1


def test_every_file_speaks_of_the_new_ids(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    """Ids in each place where a checkpoint can hold them; and nothing is left of the old vocabulary."""
    directory = copy_of(Case("bert", Task.FILL_MASK, layers=1))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.get_vocab()
    tokenizer.add_tokens(["zaubertrank"])  # behind all others
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.enable_padding(pad_id=ids["##er"], pad_token="##er", length=8)
    tokenizer.save(str(directory / "tokenizer.json"))
    model = zoo.original(Case("bert", Task.FILL_MASK, layers=1)).model
    grown = type(model).from_pretrained(directory)
    grown.resize_token_embeddings(640)  # a multiple of 64; 41 rows without tokens
    grown.save_pretrained(directory)
    last = ids["##er"]
    edit(directory / "config.json", eos_token_id=[ids["##ing"], last], bos_token_id=last, further={"cls_token_id": last})
    decoder = {str(number): {"content": token, "special": True} for token, number in [("[PAD]", 0), ("zaubertrank", len(ids)), ("away", 639)]}
    edit(directory / "tokenizer_config.json", added_tokens_decoder=decoder, sep_token_id=ids["[SEP]"])
    (directory / "vocab.txt").write_text("\n".join(sorted(ids, key=ids.__getitem__)), encoding="utf-8")
    (directory / "added_tokens.json").write_text(json.dumps({"zaubertrank": len(ids)}), encoding="utf-8")

    before = zoo.load(directory, ModelSection(source="m"))
    assert before.spec.facts["vocabulary"] == 640
    after = run(zoo, before, 380)
    new, config = library(after).get_vocab(), json.loads((after.path / "config.json").read_text(encoding="utf-8"))
    assert sorted(new.values()) == list(range(380)) and new["zaubertrank"] == 379
    assert new["##er"] < last and new["##er"] != new["##ing"]
    assert config["eos_token_id"] == [new["##ing"], new["##er"]]
    assert (config["vocab_size"], config["bos_token_id"], config["further"]["cls_token_id"]) == (380, new["##er"], new["##er"])
    decoder = json.loads((after.path / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    assert {number: token["content"] for number, token in decoder.items()} == {"0": "[PAD]", "379": "zaubertrank"}
    assert json.loads((after.path / "tokenizer.json").read_text(encoding="utf-8"))["padding"]["pad_id"] == new["##er"]
    assert not {"vocab.txt", "added_tokens.json"} & {path.name for path in after.path.iterdir()}
    encoding = tokenizers.Tokenizer.from_file(str(after.path / "tokenizer.json")).encode("a zaubertrank")
    assert encoding.tokens == ["[CLS]", "a", "zaubertrank", "[SEP]", *["##er"] * 4]
    weights = load_file(after.path / "model.safetensors")
    old = load_file(directory / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(weights[name], old[name][kept_rows(before, after)])
    assert Original(after.path, Task.FILL_MASK).tokenizer("zaubertrank")["input_ids"][1] == 379


def test_positions_are_counted_from_the_same_id(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    """Where something stands before the padding token, whose id says where positions begin."""
    case = Case("roberta", Task.FILL_MASK)
    directory = copy_of(case)
    data = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    ids = data["model"]["vocab"]
    late = list(ids)[-1]
    ids["<s>"], ids[late] = ids[late], ids["<s>"]
    data["post_processor"]["cls"][1] = next(token for token in data["added_tokens"] if token["content"] == "<s>")["id"] = ids["<s>"]
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    edit(directory / "config.json", bos_token_id=None)
    before = zoo.load(directory, ModelSection(source="m"))
    after = run(zoo, before, 330)
    assert read_text_spec(after.path / "text.json").pad_id == 1 and library(after).id_to_token(0) == late
    rows, text = kept_rows(before, after), "q7z, 3k?"
    was, now = Original(before.path, case.task), Original(after.path, case.task)
    assert set(rows).issuperset(was.tokens(text)["input_ids"][0].tolist())
    assert np.abs(now.outputs(text)["logits"] - was.outputs(text)["logits"][:, :, rows]).max() <= 1e-5


def test_tokens_that_only_transformers_knows_to_be_special_stay(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    """CamemBERT's class adds these where they are missing, behind the last row of the table."""
    directory = copy_of(Case("camembert", Task.FILL_MASK, layers=1))
    data = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    place = next(number for number, (piece, _) in enumerate(data["model"]["vocab"]) if piece == "▁later")
    data["model"]["vocab"][place] = ["<unk>NOTUSED", -100.0]
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    after = run(zoo, zoo.load(directory, ModelSection(source="m")), 300)
    original = Original(after.path, Task.FILL_MASK)
    assert original.tokens("<unk>NOTUSED")["input_ids"][0].tolist() == [0, library(after).token_to_id("<unk>NOTUSED"), 2]
    # Its characters are no reason to keep more, or to make the unknown token dearer.
    assert dict(map(tuple, json.loads((after.path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]))["<unk>"] == 0.0


def test_no_piece_may_run_into_one_that_must_be_found(tmp_path: Path) -> None:
    """`q` is known only after `b`; without `xa`, `##ab` would swallow that `b`."""
    pieces = ["[UNK]", "x", "a", "b", "##x", "##a", "##b", "xa", "ab", "##ab", "##bq", "##xb"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    before = TokenizerFile.read(tmp_path)
    assert before.tokenizer.encode("xabq").tokens == ["xa", "##bq"]
    kept = choose(demands(before, {0}), {0}, 10, {before.ids["##ab"]: 9}, {})
    assert [pieces[number] for number in kept] == [piece for piece in pieces if piece not in {"##ab", "##xb"}]
    kept = choose(demands(before, {0}), {0}, 8, {before.ids["##ab"]: 9}, {})
    after = before.with_tokens({old: new for new, old in enumerate(kept)})
    assert after.tokenizer.encode("xabq").tokens == ["x", "##a", "##bq"]


def test_merges_come_in_their_own_order(tmp_path: Path) -> None:
    """Ids of a BPE tokenizer need not follow its merges: RoBERTa's follow the frequency in another corpus."""
    pieces = ["<unk>", "abc", "cb", "ab", "a", "b", "c"]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [("a", "b"), ("c", "b"), ("ab", "c")]))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    before = TokenizerFile.read(tmp_path)
    for size, expected in ((4, []), (5, ["ab"]), (6, ["cb", "ab"]), (7, ["abc", "cb", "ab"])):
        assert [pieces[number] for number in choose(demands(before, {0}), {0}, size, {}, {})] == ["<unk>", *expected, "a", "b", "c"]
    # `abc` needs `ab`; where there is no room for both, the next one takes it.
    kept = choose(demands(before, {0}), {0}, 5, {before.ids["abc"]: 2, before.ids["cb"]: 1}, {})
    assert [pieces[number] for number in kept] == ["<unk>", "cb", "a", "b", "c"]


def test_an_unknown_token_must_not_become_the_better_way(tmp_path: Path) -> None:
    """`c` has no piece of its own, and `ab` with an unknown character is better than what is left to spell the text."""
    tokenizer = tokenizers.Tokenizer(models.Unigram(
        [("<unk>", 0.0), ("a", -18.0), ("z", -18.0), ("b", -18.0), ("za", -2.0), ("bc", -20.0), ("ab", -3.0)], unk_id=0))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    before = TokenizerFile.read(tmp_path)
    assert before.tokenizer.encode("zabc").tokens == ["za", "bc"]
    wanted = demands(before, set())
    kept = choose(wanted, {0}, 6, {before.ids["ab"]: 1}, {})
    new_ids = {old: new for new, old in enumerate(kept)}
    assert before.with_tokens(new_ids, unknown_last=True).tokenizer.encode("zabc").tokens == ["z", "a", "bc"]
    assert before.with_tokens(new_ids, unknown_last=False).tokenizer.encode("zabc").tokens == ["z", "ab", "c"]
    assert wanted.unknown_last


def test_bytes_spell_what_no_piece_does(tmp_path: Path) -> None:
    """With all 256 bytes a character needs no piece of its own."""
    entries = [("<unk>", 0.0)] + [(f"<0x{number:02X}>", -20.0) for number in range(256)] + [("a", -5.0), ("é", -6.0), ("日本", -7.0), ("aé", -8.0)]
    for model in (models.Unigram(entries, unk_id=0, byte_fallback=True),
                  models.BPE({piece: number for number, (piece, _) in enumerate(entries)}, [("a", "é")], unk_token="<unk>", byte_fallback=True)):
        tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        before = TokenizerFile.read(tmp_path)
        wanted = demands(before, {0})
        assert (len(wanted.alphabet), wanted.unknown_last) == (258, False)
        kept = choose(wanted, {0}, 259, {}, {})
        after = before.with_tokens({old: new for new, old in enumerate(kept)})
        assert after.tokenizer.encode("日本aé").tokens == [*(f"<0x{byte:02X}>" for byte in "日本".encode()), "a", "é"]


def test_places_in_reserve_go_first(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    """BERT's vocabulary begins with hundreds of tokens that no text has."""
    directory = copy_of(Case("bert", Task.FILL_MASK, layers=1))
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["vocab"] = {f"[unused{number}]" if token in {"the", "of"} else token: number for token, number in data["model"]["vocab"].items()}
    path.write_text(json.dumps(data), encoding="utf-8")
    view = zoo.load(directory, ModelSection(source="m"))
    after = run(zoo, view, view.spec.facts["vocabulary"] - 2)
    gone = library(view).get_vocab().keys() - library(after).get_vocab().keys()
    assert len(gone) == 2 and all(token.startswith("[unused") for token in gone)


def test_the_same_bytes_every_time(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    """Also of a bare encoder without a pooler, for which Transformers makes a random one."""
    from safetensors.torch import save_file

    directory = copy_of(Case("mpnet", Task.SENTENCE_SIMILARITY))
    weights = load_file(directory / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "pooler" not in name}, directory / "model.safetensors", metadata={"format": "pt"})
    view = zoo.load(directory, ModelSection(source="m"))
    first, again = (run(zoo, view, 400, *as_rows(TEXTS[::4])) for _ in range(2))
    assert again.spec == first.spec
    for path in first.path.iterdir():
        assert path.read_bytes() == (again.path / path.name).read_bytes(), path.name


def test_what_was_pruned_before_stays_pruned(zoo: Zoo, tmp_path: Path) -> None:
    from edgeexport.converters._pruned_model import resize, save_model

    case = Case("bert", Task.TEXT_CLASSIFICATION)
    model = load_model(zoo.loaded(case).path, case.task)
    layer = model.base_model.encoder.layer[0]
    wide, narrow = layer.intermediate.dense, layer.output.dense
    first, bias, second = (value.detach()[index].clone() for value, index in (
        (wide.weight, slice(40)), (wide.bias, slice(40)), (narrow.weight, (slice(None), slice(40)))))
    resize(wide, "weight", (40, 32))
    resize(wide, "bias", (40,))
    resize(narrow, "weight", (32, 40))
    with torch.no_grad():
        wide.weight.copy_(first)
        wide.bias.copy_(bias)
        narrow.weight.copy_(second)
    save_model(model, zoo.loaded(case).path, tmp_path)
    after = run(zoo, View(tmp_path, zoo.loaded(case).spec), 400)
    shapes = json.loads((after.path / "config.json").read_text(encoding="utf-8"))["pruned_shapes"]
    assert sorted(map(tuple, shapes.values())) == [(32, 40), (40,), (40, 32)]
    again = load_model(after.path, case.task)
    assert torch.equal(again.base_model.encoder.layer[0].intermediate.dense.weight, first)
    assert again.config.vocab_size == len(again.base_model.embeddings.word_embeddings.weight) == 400


def test_a_trimmed_model_is_exported_and_answers(zoo: Zoo) -> None:
    case = Case("camembert", Task.FILL_MASK, layers=1)
    view = trimmed(zoo, case)
    model = zoo.run(find_step("export_onnx")(), {"checkpoint": view})
    session = Session(Payload(zoo.payload(view, model).path), "v", "onnxruntime")
    original = Original(view.path, case.task)
    for text in TEXTS[60:70]:
        encoded = session.encode(f"{original.tokenizer.mask_token} {text}")
        wanted = original.outputs(f"{original.tokenizer.mask_token} {text}")["logits"]
        assert np.abs(session.outputs(encoded)["logits"] - wanted).max() <= 1e-4 * wanted.std()


@pytest.mark.parametrize(("spec", "told"), [
    (Spec(kind=Kind.SAVED_MODEL, architecture="bert", facts={"vocabulary": 1000}), "a saved-model cannot be trimmed"),
    (Spec(kind=Kind.CHECKPOINT, architecture="t5", facts={"vocabulary": 1000}), "'t5' keeps its vocabulary is not known"),
    (Spec(kind=Kind.CHECKPOINT, architecture="bert", facts={"vocabulary": 300}), "has 300 tokens only")])
def test_refused_before_any_work(spec: Spec, told: str) -> None:
    found = find_step("trim_vocabulary")(size=300).infer({"checkpoint": spec})
    assert isinstance(found, Refusal)
    assert told in found.reason and found.hint


def test_what_would_come_out(zoo: Zoo) -> None:
    spec = zoo.loaded(Case("bert", Task.FILL_MASK, layers=1)).spec
    found = find_step("trim_vocabulary")(size=300).infer({"checkpoint": spec})
    assert isinstance(found, Spec)
    assert found.facts == spec.facts | {"vocabulary": 300}


@pytest.mark.parametrize("kind", KIND_OF)
def test_a_size_below_the_alphabet(zoo: Zoo, kind: str) -> None:
    view = zoo.loaded(Case(KIND_OF[kind], Task.FILL_MASK, layers=1))
    with pytest.raises(RecipeError, match="A vocabulary of 50 tokens is too small") as caught:
        run(zoo, view, 50)
    smallest = int(str(caught.value.hint).rpartition(" ")[2])
    assert len(library(run(zoo, view, smallest)).get_vocab()) == smallest
    with pytest.raises(RecipeError, match="too small"):
        run(zoo, view, smallest - 1)


def fails(zoo: Zoo, directory: Path) -> str:
    view = zoo.load(directory, ModelSection(source="m"))
    with pytest.raises(EdgeExportError) as caught:
        run(zoo, view, 400)
    assert isinstance(caught.value, CheckpointError) and caught.value.hint
    return str(caught.value)


def test_kinds_of_tokenizers_that_have_no_smaller_pieces(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(Case("bert", Task.FILL_MASK, layers=1))
    ids = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for model, told in ((models.WordLevel(ids, unk_token="[UNK]"), "WordLevel tokenizer cannot be trimmed"),
                        (models.BPE(ids, [], end_of_word_suffix="</w>"), "where words go on or end")):
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        tokenizer.save(str(directory / "tokenizer.json"))
        assert told in fails(zoo, directory)


def test_characters_that_only_overlapping_pieces_hold(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(Case("bert", Task.FILL_MASK, layers=1))
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    ids = data["model"]["vocab"]
    ids["##xɸa"], ids["##ɸax"] = ids.pop("##ing"), ids.pop("##er")
    path.write_text(json.dumps(data), encoding="utf-8")
    assert "without making known words unknown" in fails(zoo, directory)


def test_a_tokenizer_that_is_not_the_models(zoo: Zoo, copy_of: Callable[[Case], Path]) -> None:
    directory = copy_of(Case("bert", Task.FILL_MASK, layers=1))
    path = directory / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["zaubertrank"])
    tokenizer.save(str(path))
    assert "The tokenizer is not the model's" in fails(zoo, directory)
    data = json.loads(whole)
    data["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [5000]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert "names the id 5000, which no token has" in fails(zoo, directory)


def test_a_padding_id_that_no_token_has(zoo: Zoo, tmp_path: Path) -> None:
    view = zoo.loaded(Case("bert", Task.FILL_MASK, layers=1))
    shutil.copytree(view.path, tmp_path / "m")
    edit(tmp_path / "m" / "text.json", pad_id=5000)
    with pytest.raises(CheckpointError, match="filled up with the id 5000"):
        run(zoo, View(tmp_path / "m", view.spec), 400)


def test_code_of_its_own(zoo: Zoo, tmp_path: Path) -> None:
    view = zoo.loaded(Case("bert", Task.FILL_MASK, layers=1))
    shutil.copytree(view.path, tmp_path / "m")
    edit(tmp_path / "m" / "config.json", auto_map={"AutoModel": "own.Model"})
    with pytest.raises(CheckpointError, match="code of its own cannot be trimmed"):
        run(zoo, View(tmp_path / "m", view.spec), 400)


@pytest.mark.parametrize("texts", [[], ["", "  "]], ids=["no rows", "blanks"])
def test_a_data_set_without_texts(zoo: Zoo, texts: list[str]) -> None:
    step = find_step("trim_vocabulary")(size=400, datasets=("mine",))
    with pytest.raises(DataError, match="'mine' has no texts"):
        zoo.run(step, {"checkpoint": zoo.loaded(Case("bert", Task.FILL_MASK, layers=1)), "mine": zoo.dataset("mine", as_rows(texts))})
