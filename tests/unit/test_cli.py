"""The command line: help everywhere, errors in plain words or as JSON, and an exit code for every outcome."""

from __future__ import annotations

import importlib.resources
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from command_line import Ran
from fake_bundle import make_bundle, report_of
from fake_steps import Write, plan_of

from edgeexport import __version__, bundle, cli
from edgeexport.artifact import Artifact, Kind, Spec
from edgeexport.build import Built, Prepared
from edgeexport.cli import build as build_module
from edgeexport.cli.cache import parse_size
from edgeexport.cli.inspect import folded
from edgeexport.cli.model_options import choose_recipe
from edgeexport.cli.progress import LineProgress, LiveProgress, ended
from edgeexport.cli.run import shown
from edgeexport.cli.terminal import megabytes, seconds, styled
from edgeexport.errors import CheckpointError, EdgeExportError, RecipeError, StepFailed
from edgeexport.inspection.model import Value
from edgeexport.schedule import Event
from edgeexport.store import Entry, Run, Store
from edgeexport.verify.check import Verdict

RECIPE = 'schema = 1\nname = "mine"\n[model]\nsource = "some/model"\nmax_length = 32\n'


Edgeexport = Callable[..., Ran]


@pytest.fixture
def edgeexport(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Edgeexport]:
    """Runs the command line in an empty directory with a store of its own."""
    monkeypatch.setenv("EDGEEXPORT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["edgeexport", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ran(int(caught.value.code or 0), said.out, said.err)

    yield run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The small files of a BERT checkpoint, and weights of one number."""
    place = tmp_path / "tiny-bert"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 64,
                                                   "vocab_size": 10, "pad_token_id": 0}), encoding="utf-8")
    (place / "tokenizer.json").write_text("{}", encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    return place


# -- help


def commands() -> list[list[str]]:
    """Every command and subcommand."""
    found: list[list[str]] = []
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.list_commands(context)]
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself_and_its_options(edgeexport: Edgeexport, path: list[str]) -> None:
    ran = edgeexport(*path, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: edgeexport {' '.join(path)}")
    assert edgeexport(*path, "-h").out == ran.out
    explained = ran.out.split("\n\n")[1].split()
    assert len(explained) > 4
    if len(path) == 1:  # the first page says the same in short
        assert explained[:1] == cli.SUMMARIES[path[0]].split()[:1]


def test_the_first_page_lists_every_command_and_exit_code(edgeexport: Edgeexport) -> None:
    ran = edgeexport("--help")
    assert ran.code == 0
    assert list(cli.SUMMARIES) == list(cli.COMMANDS)
    assert all(f"  {name} " in ran.out for name in cli.COMMANDS)
    assert "0 pass, 1 fail, 3 inconclusive, 2 error, 130 interrupted" in " ".join(ran.out.split())
    assert __version__ in edgeexport("--version").out


# -- errors


@pytest.mark.parametrize(("arguments", "kind", "words"), [
    (["build", "--target", "raspbery"], "UnknownName", "did you mean 'raspberrypi'?"),
    (["plan", "--target", "./gone.toml"], "TargetError", "There is no target file gone.toml."),
    (["build", "x", "--target", "raspberrypi", "--recipe", "gone.toml"], "RecipeError", "There is no recipe gone.toml."),
    (["build", "./gone", "--target", "raspberrypi"], "CheckpointError", "There is no checkpoint at ./gone."),
    (["build", "a/b", "--target", "raspberrypi", "--task", "cooking"], "RecipeError", "Key 'model.task' in the command line"),
    (["plan", "--target", "raspberrypi", "--task", "cooking"], "RecipeError", "Key 'task' in the command line"),
    (["plan", "--target", "raspberrypi", "--max-length", "1"], "RecipeError", "greater than 2 (got 1)"),
    (["targets", "show", "andriod-arm64"], "UnknownName", "did you mean 'android-arm64'?"),
    (["inspect", "gone.onnx"], "ModelFileError", "Cannot read the model gone.onnx."),
    (["verify", "gone.zip"], "BundleError", "There is no bundle at gone.zip."),
    (["run", "gone.zip", "text"], "BundleError", "There is no bundle at gone.zip."),
    (["publish", "gone", "registry"], "BundleError", "There is no bundle at gone."),
    (["pull", "registry/gone", "--target", "board"], "BundleError", "There is no bundle at registry/gone."),
    (["cache", "prune", "--keep", "lots"], "EdgeExportError", "'lots' is not a size."),
    (["build"], "UsageError", "--target"),
    (["build", "--target", "raspberrypi", "--jobs", "0"], "UsageError", "--jobs"),
    (["bild"], "UsageError", "No such command 'bild'"),
    (["schema", "recipes"], "UsageError", "recipe"),
])
def test_an_error_is_a_few_plain_lines_or_one_json_object(edgeexport: Edgeexport, arguments: list[str], kind: str, words: str) -> None:
    plain = edgeexport(*arguments)
    assert plain.code == 2
    assert plain.out == ""
    assert words in plain.err
    told = edgeexport(*arguments, "--json")
    assert told.code == 2
    assert set(told.json) == {"error"}
    assert set(told.json["error"]) == {"kind", "what", "why", "hint"}
    assert told.json["error"]["kind"] == kind or (kind, arguments[0]) == ("UsageError", "schema")
    assert kind == "UsageError" or words in json.dumps(told.json, ensure_ascii=False)


def test_an_unknown_key_in_the_recipe_here_is_told_with_the_nearest(edgeexport: Edgeexport) -> None:
    Path("edgeexport.toml").write_text(RECIPE.replace("max_length", "maxlength"), encoding="utf-8")
    ran = edgeexport("build", "--target", "raspberrypi")
    assert ran.code == 2
    assert "Unknown key 'model.maxlength' in edgeexport.toml." in ran.err
    assert "did you mean 'max_length'?" in ran.err


# -- build: outcomes and exit codes


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Lets `build` end with these verdicts, one a target, or with an error."""

    def set_outcome(*verdicts: Verdict, error: BaseException | None = None) -> None:
        built = []
        for number, verdict in enumerate(verdicts):
            place, archive = tmp_path / f"bundle-{number}", tmp_path / f"bundle-{number}.zip"
            manifest = make_bundle(place, tmp_path / f"scratch-{number}", {"onnx": verdict}, target=f"board-{number}")
            bundle.write_archive(place, archive)
            built.append(Built(place, archive, report_of({"onnx": verdict}, target=f"board-{number}"), manifest))

        def build(prepared: Prepared, out: Path, limits: object, tell: Callable[[Event], None], *, repair: bool) -> list[Built]:
            if error is not None:
                raise error
            return built

        monkeypatch.setattr(build_module, "prepare", lambda *args, **options: Prepared(None, plan_of({"a": (Write(text="a"), {})}), None, (), None))  # type: ignore[arg-type]
        monkeypatch.setattr(build_module, "tell_of_source", lambda prepared: None)
        monkeypatch.setattr(build_module, "build", build)

    return set_outcome


@pytest.mark.parametrize(("verdicts", "code"), [
    ((Verdict.PASS,), 0), ((Verdict.FAIL,), 1), ((Verdict.INCONCLUSIVE,), 3), ((Verdict.PASS, Verdict.INCONCLUSIVE), 3),
    ((Verdict.INCONCLUSIVE, Verdict.FAIL), 1), ((Verdict.PASS, Verdict.PASS), 0)])
def test_a_build_exits_with_its_worst_verdict(edgeexport: Edgeexport, outcome: Callable[..., None], verdicts: tuple[Verdict, ...], code: int) -> None:
    outcome(*verdicts)
    told = edgeexport("build", "some/model", "--target", "raspberrypi", "--json")
    assert told.code == code
    assert [each["report"]["verdict"] for each in told.json["bundles"]] == [verdict.value for verdict in verdicts]
    ran = edgeexport("build", "some/model", "--target", "raspberrypi")
    assert ran.code == code
    for number, verdict in enumerate(verdicts):
        assert f"help-search for board-{number} (Board)" in ran.out
        assert f"verdict: {verdict.value} (host x86-64; not run on aarch64)" in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80 or "bundle:" in ran.out


@pytest.mark.parametrize(("error", "code", "said"), [
    (StepFailed("export_onnx died.", why="signal SIGSEGV", hint="try again"), 2, "error: export_onnx died.\n  why: signal SIGSEGV\n  try: try again"),
    (CheckpointError("It is damaged."), 2, "error: It is damaged."),
    (PermissionError(13, "Permission denied", "/some/model.safetensors"), 2,
     "error: Cannot use /some/model.safetensors.\n  why: Permission denied"),
    (KeyboardInterrupt(), 130, "interrupted; what was finished stays stored"),
])
def test_a_build_that_does_not_end_well_says_why(edgeexport: Edgeexport, outcome: Callable[..., None], error: BaseException, code: int,
                                                 said: str) -> None:
    outcome(error=error)
    ran = edgeexport("build", "some/model", "--target", "raspberrypi")
    assert ran.code == code
    assert said in ran.err
    assert ran.out == ""


def test_the_store_is_in_use_from_the_first_data_set_to_the_seal(edgeexport: Edgeexport, outcome: Callable[..., None],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    outcome(Verdict.PASS)
    free: list[bool] = []

    def prepare(*args: object, **options: object) -> Prepared:
        with Store().in_use(alone=True) as alone:
            free.append(alone)
        raise RecipeError("enough seen")

    monkeypatch.setattr(build_module, "prepare", prepare)
    assert edgeexport("build", "some/model", "--target", "raspberrypi").code == 2
    assert free == [False]


# -- which recipe is meant


def test_a_recipe_here_is_taken_before_the_demo_and_a_model_before_both(edgeexport: Edgeexport, capsys: pytest.CaptureFixture[str]) -> None:
    demo = choose_recipe(None, None, None, None, announce=True)
    assert demo.name == "help-search"
    assert "building the demo" in capsys.readouterr().err
    Path("edgeexport.toml").write_text(RECIPE, encoding="utf-8")
    mine = choose_recipe(None, None, None, None, announce=True)
    assert (mine.name, mine.directory) == ("mine", Path.cwd())
    assert capsys.readouterr().err == ""
    bare = choose_recipe("owner/other", None, "fill-mask", 16, announce=True)
    assert (bare.name, bare.model.source, bare.model.task, bare.model.max_length) == ("other", "owner/other", "fill-mask", 16)


def test_the_command_line_wins_over_the_recipe(edgeexport: Edgeexport, tmp_path: Path) -> None:
    path = Path("other.toml")
    path.write_text(RECIPE, encoding="utf-8")
    (tmp_path / "here" / "local").mkdir()
    chosen = choose_recipe("local", path, "fill-mask", 64, announce=False)
    assert (chosen.name, chosen.model.source, chosen.model.task, chosen.model.max_length) == ("mine", str(Path("local").absolute()), "fill-mask", 64)


def test_limits_are_the_machines_where_none_are_given() -> None:
    limits = build_module.default_limits(None, None)
    assert 1 <= limits.jobs <= 4
    assert limits.memory_mb > 500
    assert build_module.default_limits(7, 1234).jobs == 7
    assert build_module.default_limits(7, 1234).memory_mb == 1234


# -- plan and init, which read the checkpoint and run nothing


def test_plan_says_what_would_run_and_runs_nothing(edgeexport: Edgeexport, checkpoint: Path, tmp_path: Path) -> None:
    told = edgeexport("plan", str(checkpoint), "--target", "raspberrypi", "--target", "linux-x86_64", "--json")
    assert told.code == 0
    nodes = told.json["nodes"]
    assert {node["state"] for node in nodes.values()} == {"run"}
    assert {"load_checkpoint", "export_onnx", "export_tflite", "compute_reference"} <= nodes.keys()
    assert told.json["predicted"]["steps"] == len(nodes)
    assert told.json["predicted"]["seconds"] is None  # nothing was ever run: not 0
    assert list(Store(tmp_path / "cache").entries()) == []
    ran = edgeexport("plan", str(checkpoint), "--target", "raspberrypi")
    assert ran.code == 0
    assert "quantize_onnx[dynamic-int8]" in ran.out  # the brackets are no markup
    assert f"{len(edgeexport('plan', str(checkpoint), '-t', 'raspberrypi', '--json').json['nodes'])} steps to run" in " ".join(ran.out.split())


def test_init_writes_a_recipe_that_builds_what_it_says(edgeexport: Edgeexport, checkpoint: Path) -> None:
    assert edgeexport("init", str(checkpoint)).code == 0
    text = Path("edgeexport.toml").read_text(encoding="utf-8")
    assert 'task = "feature-extraction"' in text
    assert edgeexport("plan", "--target", "raspberrypi").code == 0
    again = edgeexport("init", str(checkpoint))
    assert again.code == 2
    assert "--force overwrites it" in again.err
    assert edgeexport("init", str(checkpoint), "--force", "--json").json["max_length"] == 64
    uncommented = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and " = " in line]
    assert len(uncommented) > 10


# -- the other commands


def test_a_bundle_is_published_and_pulled_over_the_command_line(edgeexport: Edgeexport, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch", {"onnx": Verdict.PASS, "litert": Verdict.FAIL})
    bundle.write_archive(tmp_path / "bundle", tmp_path / "bundle.zip")
    assert edgeexport("publish", str(tmp_path / "bundle.zip"), "registry").code == 0
    told = edgeexport("pull", "registry/help-search", "--target", "board", "--json")
    assert told.code == 0
    assert told.json["verdict"] == "pass"
    assert (Path("help-search-board") / "manifest.json").is_file()
    refused = edgeexport("pull", "registry/help-search", "--target", "board", "--lane", "litert", "--json")
    assert refused.code == 2
    assert refused.json["error"]["kind"] == "VerdictRefused"
    assert edgeexport("pull", "registry/help-search", "-t", "board", "--lane", "litert", "--allow-failed", "-o", "out").code == 0
    assert (Path("out") / "help-search-board-litert" / "manifest.json").is_file()


def test_targets_are_listed_and_shown_with_their_sources(edgeexport: Edgeexport) -> None:
    assert "raspberrypi" in edgeexport("targets", "list").out
    assert [target["name"] for target in edgeexport("targets", "list", "--json").json] == sorted(
        Path(entry.name).stem for entry in importlib.resources.files("edgeexport.targets").iterdir() if entry.name.endswith(".toml"))
    shown_ = edgeexport("targets", "show", "raspberrypi")
    assert "device.ram_mb: Raspberry Pi 4 Model B product brief" in " ".join(shown_.out.split())
    assert edgeexport("targets", "show", "raspberrypi", "--json").json["schema"] == 1


def test_the_store_is_listed_and_pruned(edgeexport: Edgeexport, tmp_path: Path) -> None:
    assert edgeexport("cache", "list", "--json").json["actions"] == []
    entry = stored(Store(tmp_path / "cache"))
    told = edgeexport("cache", "list", "--json").json
    assert [(action["step"], action["key"], action["bytes"]) for action in told["actions"]] == [("make[x]", entry.key, 0)]
    assert entry.key[:12] in edgeexport("cache", "list").out
    assert "removed 0 actions" in edgeexport("cache", "prune", "--keep", "1GB").out
    with Store(tmp_path / "cache").in_use():
        assert "a build is running" in edgeexport("cache", "prune", "--keep", "0").err


def stored(store: Store) -> Entry:
    return store.put({"step": "make[x]", "options": {}}, "f" * 64, "e" * 64, Artifact(tree={}, spec=Spec(kind=Kind.ONNX)),
                     Run(seconds=101, peak_rss_mb=1234.5, finished=1000))


@pytest.mark.parametrize("name", ["recipe", "target", "manifest", "report"])
def test_a_schema_is_one_json_object_that_forbids_unknown_keys(edgeexport: Edgeexport, name: str) -> None:
    schema = edgeexport("schema", name).json
    assert schema["additionalProperties"] is False
    assert "schema" in schema["properties"] or "schema_version" in schema["properties"]


def test_doctor_says_what_is_there_and_what_to_do(edgeexport: Edgeexport) -> None:
    told = edgeexport("doctor", "--json").json
    assert set(told) == {"machine", "extras", "runtimes"}
    assert told["extras"].keys() == {"convert", "onnx", "tflite", "demo", "tensorflow"}
    assert "onnxruntime==1.31.1" in told["runtimes"]
    assert "tflite-runtime==2.14.0" in edgeexport("doctor").out


# -- helpers


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("500MB", 500_000_000), ("2 GB", 2_000_000_000), ("1.5g", 1_500_000_000), ("12kB", 12_000),
                                            ("7", 7), ("1T", 10**12)])
def test_a_size_may_have_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 PB", "1,5GB", "1GB extra"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(EdgeExportError, match="is not a size"):
        parse_size(text)


def test_figures_in_words() -> None:
    assert [megabytes(size) for size in (None, 0, 900, 99_999, 100_000, 25_700_000)] == ["?", "0.0 kB", "0.9 kB", "100.0 kB", "0.1 MB", "25.7 MB"]
    assert [seconds(value) for value in (0.04, 3.21, 99.9, 125.0, 3600.0)] == ["0.0 s", "3.2 s", "99.9 s", "2 min 05 s", "60 min 00 s"]
    assert styled(None) == "[dim]null[/]"
    assert "fail" in styled(Verdict.FAIL)


@pytest.mark.parametrize(("answer", "text"), [
    ([0.5, -0.25], "[0.5000, -0.2500, …]  (2 values)"),
    ([{"label": "positive", "score": 0.75}], "label=positive  score=0.7500"),
    ([], "nothing found"),
    ({"answer": "Ada", "score": 0.5, "start": 1}, "answer=Ada  score=0.5000  start=1"),
])
def test_an_answer_is_shown_for_a_person(answer: object, text: str) -> None:
    assert shown(answer) == text


def test_progress_shows_nodes_with_brackets_and_counts_what_was_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = stored(Store(tmp_path))
    with LineProgress() as progress:
        progress.tell(Event("export[a]", "cached", entry=entry))
        progress.tell(Event("quantize[dynamic-int8]", "started"))
        progress.tell(Event("quantize[dynamic-int8]", "progress", 0.5, "half [way]"))
        progress.tell(Event("quantize[dynamic-int8]", "finished", entry=entry))
        progress.tell(Event("measure[x]", "reused", entry=entry))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["✓ quantize[dynamic-int8]  1 min 41 s, 0.0 kB, peak 1,234 MB", "✓ measure[x]  its inputs' contents did not change",
                     "1 step was stored already"]
    assert ended(Event("x", "finished")) == "x"


def test_live_progress_shows_running_steps_as_they_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    progress = LiveProgress()
    progress.tell(Event("quantize[dynamic-int8]", "started"))
    progress.tell(Event("quantize[dynamic-int8]", "progress", 0.25, "op [MatMul] [/] 3"))
    Console(file=sys.stdout, width=100).print(progress._table())
    found = capsys.readouterr().out
    assert "quantize[dynamic-int8]" in found
    assert "op [MatMul] [/] 3" in found
    assert "25 %" in found
    progress.tell(Event("quantize[dynamic-int8]", "finished", entry=stored(Store(tmp_path))))
    Console(file=sys.stdout, width=100).print(progress._table())
    assert "25 %" not in capsys.readouterr().out


def test_what_differs_by_a_number_is_shown_once() -> None:
    caches = [Value(name=f"kv_cache_k_{number}", dtype="float32", shape=(1, 3, "?", 64)) for number in range(30)]
    assert folded([Value(name="tokens", dtype="int32", shape=(1, 16)), *caches]) == ["tokens int32[1, 16]", "30 × kv_cache_k_# float32[1, 3, ?, 64]"]
    assert folded(caches[:1]) == ["kv_cache_k_0 float32[1, 3, ?, 64]"]
