"""Data files of users: every mistake is told with the row, the fields that are there and what to write; leaks are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeexport.artifact import Kind, Task
from edgeexport.dataset import ROWS_FILE, Dataset, Entity, Labels, Row, joined, normalized, read_dataset, read_rows, read_texts
from edgeexport.errors import DataError, LineageError
from edgeexport.recipe import DataFile, DataSection
from edgeexport.records import read_records
from edgeexport.resolve import without_leaks
from edgeexport.store import Store

CLASSES = ("negative", "positive")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, task: Task = Task.TEXT_CLASSIFICATION, *, labels: Labels = "required", classes: Sequence[str] = CLASSES,
         **options: Any) -> Dataset:
    return read_dataset("evaluation", DataFile(file=Path(path.name), **options), path.parent, task, labels=labels, classes=classes)


def refused(path: Path, task: Task = Task.TEXT_CLASSIFICATION, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, task, **options)
    return caught.value


# -- forms


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", '{"text": "one, two", "label": "positive"}\n\n{"text": "\\"three\\"", "label": 0}\n'),
    ("a.csv", 'text,label\n"one, two",positive\n"""three""",0\n'),
    ("a.csv", '\ufefftext,label\r\n"one, two",positive\r\n"""three""",0\r\n'),  # as Windows saves it
    ("a.tsv", 'text\tlabel\none, two\tpositive\n"""three"""\t0\n'),
    ("a.tsv", 'label\tother\ttext\npositive\tx\tone, two\n0\ty\t"""three"""'),
])
def test_every_form_of_table_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    found = read(write(tmp_path / name, content))
    assert [(row.text, row.label) for row in found.rows] == [("one, two", "positive"), ('"three"', "negative")]
    assert found.origin == name


def test_a_quoted_text_may_span_lines(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\n')).rows[0].text == "one\ntwo"


def test_a_text_file_has_one_text_a_line_without_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    found = read_texts(write(tmp_path / "a.txt", "\ufefffirst, text\r\n\r\n  indented \u2028 same line\r\nlast"))
    assert [row.text for row in found.rows] == ["first, text", "  indented \u2028 same line", "last"]
    assert len({row.id for row in found.rows}) == 3
    assert all(row.label is None for row in found.rows)


def test_texts_may_be_a_table_with_pairs(tmp_path: Path) -> None:
    found = read_texts(write(tmp_path / "a.jsonl", '{"text": "who?", "text_pair": "me"}\n{"text": "when?", "text_pair": 7}\n'))
    assert [(row.text, row.text_pair) for row in found.rows] == [("who?", "me"), ("when?", "7")]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", '{"text": "x"}\n{"text": ', "line 2"),
    ("a.jsonl", '["text"]\n', "row 1 is not an object"),
    ("a.csv", 'text,label\n"one,1\ntwo,1\n', "not a valid .csv file"),  # a quotation mark that nobody closes
    ("a.csv", "text,label\nHello, world,1\n", "row 1 has more columns than the first line"),
    ("a.csv", b"text,label\n\xff\xfe,1\n", "not a valid .csv file"),
    ("a.parquet", "PAR1", "of an unknown form"),
    ("a.CSV", "text\n", "of an unknown form"),
])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_records(write(tmp_path / name, content))
    assert message in str(caught.value)
    assert name in caught.value.what


@pytest.mark.parametrize("name", ["gone.csv", "folder.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert refused(tmp_path / name).what == f"Cannot read the data file {tmp_path / name}."


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.jsonl", "\n\n"), ("a.tsv", "text\tlabel")])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert "has no rows" in refused(write(tmp_path / name, content)).what


def test_questions_and_contexts_are_texts_too(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"question": "who?", "context": "A man."}\n{"text": "a", "context": "of no matter"}\n', encoding="utf-8")
    assert [(row.text, row.text_pair) for row in read_texts(path).rows] == [("who?", "A man."), ("a", None)]


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no texts"):
        read_texts(write(tmp_path / "a.txt", "\n  \n"))


# -- fields


def test_a_wrong_field_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "a.csv", "sentence,label\nx,1\n"))
    assert "row 1 has no field 'text'" in error.what
    assert error.why == "its fields are sentence, label"
    assert "fields = { text =" in str(error.hint)


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", "sentence,class\nx,1\n"), fields={"text": "sentence", "label": "class"})
    assert (found.rows[0].text, found.rows[0].label) == ("x", "positive")


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", "text,label\nx,1\ny\n"), ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": null}\n')])
def test_a_row_without_a_value_is_told_by_its_number(tmp_path: Path, name: str, content: str) -> None:
    assert "row 2 has nothing in the field 'label'" in refused(write(tmp_path / name, content)).what


def test_an_unknown_label_is_told_with_the_models_classes(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "a.csv", "text,label\nx,1\ny,2\n"))
    assert "row 2 has the label '2'" in error.what
    assert error.why == "its classes are negative, positive"


def test_calibration_data_need_no_labels(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "text\nx\n"), labels="ignored").rows[0].label is None


def test_where_keeps_only_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": f"{split} {n}", "label": 1, "split": split, "fold": n}) + "\n"
                                               for n in range(3) for split in ("test", "train")))
    assert [row.text for row in read(path, where={"split": "test"}).rows] == ["test 0", "test 1", "test 2"]
    assert [row.text for row in read(path, where={"split": "test", "fold": "1"}).rows] == ["test 1"]
    assert "has no rows where" in refused(path, where={"split": "validation"}).what


def test_where_on_a_field_that_is_nowhere_says_which_are(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "a.csv", "text,label\nx,1\n"), where={"splt": "test"})
    assert "no field 'splt'" in error.what
    assert error.why == "its fields are text, label"


# -- tasks


def test_question_answering_takes_question_and_context(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "Who?", "context": "Me."}\n')
    assert [(row.text, row.text_pair) for row in read(path, Task.QUESTION_ANSWERING).rows] == [("Who?", "Me.")]
    assert "no field 'context'" in refused(write(path, '{"question": "Who?"}\n'), Task.QUESTION_ANSWERING).what


def corpus(tmp_path: Path, ids: str = "ab") -> Path:
    return write(tmp_path / "corpus.jsonl", "".join(json.dumps({"id": i, "text": f"answer {i}"}) + "\n" for i in ids))


@pytest.mark.parametrize("task", [Task.SENTENCE_SIMILARITY, Task.FEATURE_EXTRACTION])
def test_retrieval_takes_queries_and_the_documents_they_find(tmp_path: Path, task: Task) -> None:
    corpus(tmp_path)
    path = write(tmp_path / "q.csv", "text,answer\nfirst?,b\nsecond?,a\n")
    rows = read(path, task, corpus=Path("corpus.jsonl")).rows
    assert [(row.role, row.text, row.label) for row in rows] == [
        ("document", "answer a", None), ("document", "answer b", None), ("query", "first?", "b"), ("query", "second?", "a")]
    assert len({row.id for row in rows}) == 4


def test_retrieval_without_a_corpus_says_what_to_add(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "q.csv", "text,answer\nx,a\n"), Task.SENTENCE_SIMILARITY)
    assert "corpus =" in str(error.hint)


def test_an_answer_that_is_not_in_the_corpus_is_told_by_row(tmp_path: Path) -> None:
    corpus(tmp_path)
    error = refused(write(tmp_path / "q.csv", "text,answer\nx,a\ny,c\n"), Task.SENTENCE_SIMILARITY, corpus=Path("corpus.jsonl"))
    assert "row 2 has the answer 'c', which is not in corpus.jsonl" in error.what


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path, "aba")
    error = refused(write(tmp_path / "q.csv", "text,answer\nx,a\n"), Task.SENTENCE_SIMILARITY, corpus=Path("corpus.jsonl"))
    assert "row 3 has the id 'a' of an earlier row" in error.what


# -- entities

CONLL = "-DOCSTART- -X- O\n\nU.N.\tNNP\tI-ORG\nofficial NN O\nIda\tNNP\tB-PER\nLee NNP I-PER\nOslo NNP B-LOC\n\n\n, , O\n"
TAGS = ("O", "B-ORG", "I-ORG", "B-PER", "I-PER", "B-LOC", "I-LOC")


def test_a_conll_file_gives_texts_with_places_of_entities(tmp_path: Path) -> None:
    for name, options in (("a.conll", {}), ("a.annotated", {"format": "conll"})):
        rows = read(write(tmp_path / name, CONLL), Task.TOKEN_CLASSIFICATION, classes=TAGS, **options).rows
        assert [row.text for row in rows] == ["U.N. official Ida Lee Oslo", ","]
        assert [[(rows[0].text[entity.start:entity.end], entity.label) for entity in row.entities or ()] for row in rows] == [
            [("U.N.", "ORG"), ("Ida Lee", "PER"), ("Oslo", "LOC")], []]


def test_entities_may_be_given_as_places(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "Ida Lee", "entities": [{"start": 0, "end": 7, "label": "PER"}]}) + "\n")
    assert read(path, Task.TOKEN_CLASSIFICATION, classes=TAGS).rows[0].entities == (Entity(start=0, end=7, label="PER"),)


@pytest.mark.parametrize(("entities", "message"), [
    ([{"start": 0, "end": 8, "label": "PER"}], "row 1 has an entity from 0 to 8, outside of its text"),
    ([{"start": 2, "end": 2, "label": "PER"}], "row 1 has an entity from 2 to 2, outside of its text"),
    ([{"start": 0, "end": 3, "label": "MISC"}], "row 1 has an entity 'MISC', which the model does not know"),
    ([{"from": 0, "end": 3, "label": "PER"}], "row 1 has entities that cannot be read"),
    ("PER", "row 1 has entities that cannot be read"),
    (None, "row 1 has nothing in the field 'entities'"),
])
def test_wrong_entities_are_told(tmp_path: Path, entities: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "Ida Lee", "entities": entities}) + "\n")
    error = refused(path, Task.TOKEN_CLASSIFICATION, classes=TAGS)
    assert message in error.what


def test_a_conll_word_without_a_tag_is_told_by_line(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "a.conll", "Ida B-PER\nLee\n"), Task.TOKEN_CLASSIFICATION, classes=TAGS)
    assert "line 2" in str(error.why)


# -- as an input of the graph


def test_a_data_set_in_the_store_reads_back_as_it_was(tmp_path: Path) -> None:
    rows = (Row(id="1", text='ü "x"\n\u2028 y', label="a"), Row(id="2", text="", text_pair="pair", role="query"))
    store = Store(tmp_path / "store")
    leaf = Dataset(name="evaluation", rows=rows, origin="here").leaf(store)
    assert tuple(read_rows(store.blob_path(leaf.artifact.tree[ROWS_FILE]))) == rows
    assert leaf.artifact.spec.kind is Kind.DATASET
    assert leaf.artifact.spec.facts == {"name": "evaluation", "rows": 2, "labelled": True}
    assert Dataset(name="evaluation", rows=rows, origin="elsewhere").leaf(store).artifact.digest == leaf.artifact.digest
    assert Dataset(name="evaluation", rows=rows[:1], origin="here").leaf(store).artifact.digest != leaf.artifact.digest


# -- leaks


def dataset(name: str, *texts: str) -> Dataset:
    return Dataset(name=name, rows=tuple(Row(id=f"{name}-{i}", text=text) for i, text in enumerate(texts)), origin=name)


def shaping(judging: dict[str, Dataset], given: Dataset, **options: Any) -> Dataset:
    return without_leaks(judging, [DataFile(file=Path("data.txt"), **options)], [given])


@pytest.mark.parametrize("copy", ["Where is my parcel?", "where is MY parcel", "  Where is\tmy  parcel ?!", "Where_is_my_parcel",
                                  "\u201cWhere is my parcel?\u201d", "Ｗhere is my parcel?"])
def test_a_copy_of_evaluation_text_in_calibration_is_refused_and_shown(copy: str) -> None:
    with pytest.raises(LineageError) as caught:
        shaping({"evaluation": dataset("evaluation", "Where is my parcel?", "Something else.")}, dataset("calibration", "New.", copy))
    assert caught.value.what == "1 evaluation texts are in the calibration data too."
    assert repr(copy) in str(caught.value.why)


def test_other_texts_and_missing_data_are_no_leak() -> None:
    given = dataset("calibration", "Where is my cat?")
    assert shaping({"evaluation": dataset("evaluation", "Where is my parcel?")}, given) == given
    assert shaping({"probes": dataset("probes", "Where is my cat?")}, given) == given  # probes judge parity only
    assert dataset("evaluation", "a b").fingerprints != dataset("evaluation", "ab").fingerprints


def test_only_the_first_overlapping_examples_are_shown_and_shortened() -> None:
    texts = [f"text {i} " + "long " * 30 for i in range(5)]
    with pytest.raises(LineageError) as caught:
        shaping({"evaluation": dataset("evaluation", *texts)}, dataset("calibration", *texts))
    assert caught.value.what.startswith("5 evaluation texts")
    assert str(caught.value.why).count("…") == 3
    assert len(str(caught.value.why)) < 280


def test_a_pair_leaks_as_a_pair() -> None:
    pair = Row(id="1", text="Who?", text_pair="Ada wrote it.")
    same = Dataset(name="calibration", rows=(pair.model_copy(update={"id": "2", "text_pair": "ada wrote it"}),), origin="")
    other = Dataset(name="calibration", rows=(pair.model_copy(update={"id": "2", "text_pair": "Bob wrote it."}),), origin="")
    evaluation = Dataset(name="evaluation", rows=(pair,), origin="")
    assert shaping({"evaluation": evaluation}, other) == other
    with pytest.raises(LineageError):
        shaping({"evaluation": evaluation}, same)


def test_what_is_trained_on_may_not_choose_either() -> None:
    with pytest.raises(LineageError, match="1 development texts are in the training data too"):
        shaping({"development": dataset("development", "Same.")}, dataset("training", "Other.", "same"))


def test_overlapping_rows_are_left_out_where_the_recipe_says_so() -> None:
    judging = {"evaluation": dataset("evaluation", "One.", "Two."), "development": dataset("development", "Three.")}
    left = shaping(judging, dataset("training", "one", "three", "four"), skip_overlap=True)
    assert [row.text for row in left.rows] == ["four"]
    with pytest.raises(DataError, match="Nothing is left of the training data"):
        shaping(judging, dataset("training", "one", "three"), skip_overlap=True)


def test_questions_that_choose_may_search_the_texts_that_those_that_judge_search() -> None:
    documents = (Row(id="d", text="The answer.", role="document"),)
    judging = Dataset(name="evaluation", rows=(*documents, Row(id="e", text="Why?", role="query", label="d")), origin="")
    choosing = Dataset(name="development", rows=(*documents, Row(id="f", text="How?", role="query", label="d")), origin="")
    assert shaping({"evaluation": judging}, choosing, corpus=Path("corpus.jsonl")) == choosing
    with pytest.raises(LineageError):  # but nothing is trained on them
        shaping({"evaluation": judging}, Dataset(name="training", rows=documents, origin=""))


def test_training_data_of_several_files_are_one_set_with_ids_of_its_own(tmp_path: Path) -> None:
    section = DataSection.model_validate({"training": [{"file": "a.csv"}, {"file": "b.txt"}]})
    assert section.training == (DataFile(file=Path("a.csv")), DataFile(file=Path("b.txt")))
    assert DataSection.model_validate({"training": {"file": "a.csv"}}).training == section.training[:1]
    write(tmp_path / "a.csv", "text,label\nx,1\n")
    write(tmp_path / "b.txt", "y\nz\n")
    parts = [read_dataset("training", file, tmp_path, Task.TEXT_CLASSIFICATION, labels="optional", classes=CLASSES) for file in section.training]
    both = joined("training", parts)
    assert [(row.text, row.label) for row in both.rows] == [("x", "positive"), ("y", None), ("z", None)]
    assert len({row.id for row in both.rows}) == 3
    assert both.origin == "a.csv, b.txt"


@given(st.text(max_size=30))
@example("ß İ ŉ")
@example("...")
def test_blanks_around_a_text_never_count(text: str) -> None:
    assert normalized(f"  {text}\n") == normalized(text)
