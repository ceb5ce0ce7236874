"""The command line. The only place that prints or exits."""

from __future__ import annotations

import importlib
import io
import json
import sys

import click

import edgeexport
from edgeexport.errors import EXIT_ERROR, EXIT_INTERRUPTED, EdgeExportError, UsageError

# Command → the module that holds it: imported when it is called, so that `--help` costs nothing.
COMMANDS = {
    "build": "edgeexport.cli.build",
    "tune": "edgeexport.cli.tune",
    "plan": "edgeexport.cli.plan",
    "init": "edgeexport.cli.init",
    "targets": "edgeexport.cli.targets",
    "inspect": "edgeexport.cli.inspect",
    "verify": "edgeexport.cli.verify",
    "run": "edgeexport.cli.run",
    "chat": "edgeexport.cli.chat",
    "publish": "edgeexport.cli.distribute",
    "pull": "edgeexport.cli.distribute",
    "cache": "edgeexport.cli.cache",
    "doctor": "edgeexport.cli.doctor",
    "schema": "edgeexport.cli.schema",
}
SUMMARIES = {
    "build": "Build a verified bundle for each target.",
    "tune": "Search for a smaller and faster model that is still good enough.",
    "plan": "Show what a build would do, and what is stored already.",
    "init": "Write a commented recipe for a model.",
    "targets": "List the targets, or show one.",
    "inspect": "Show what is in a model file or a bundle.",
    "verify": "Check a bundle: its files, and its golden vectors in the runtimes here.",
    "run": "Run a bundle on texts.",
    "chat": "Talk with a language model of a bundle.",
    "publish": "Put a bundle into a directory that others pull from.",
    "pull": "Get a bundle from such a directory.",
    "cache": "List or prune what builds have stored.",
    "doctor": "Say what is installed, which runtimes can run, and what to do about the rest.",
    "schema": "Print the JSON Schema of a file.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgeexport.__version__)
def cli() -> None:
    """Export Hugging Face checkpoints to INT8 TFLite and ONNX bundles for a device, and prove that they are right.

    Without a model and without an edgeexport.toml, `edgeexport build --target raspberrypi` builds the demo.

    Exit codes: 0 pass, 1 fail, 3 inconclusive, 2 error, 130 interrupted.
    """


def show_json(error: EdgeExportError) -> None:
    """Print an error as the one JSON object."""
    click.echo(json.dumps({"error": error.as_dict()}, ensure_ascii=False))


def main() -> None:
    """Run the command line; every error becomes a few plain lines, or with --json an object."""
    as_json = "--json" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of another encoding gets question marks
    try:
        result = cli.main(prog_name="edgeexport", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except EdgeExportError as exc:
        if as_json:
            show_json(exc)
        else:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {exc}", err=True)
        code = exc.exit_code
    except click.ClickException as exc:
        if as_json:
            show_json(UsageError(exc.format_message()))
        else:
            exc.show()
        code = EXIT_ERROR
    except (click.Abort, KeyboardInterrupt):
        stored = sys.argv[1:2] in (["build"], ["tune"])
        click.echo(f"interrupted{'; what was finished stays stored' if stored else ''}", err=True)
        code = EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit):  # whoever read our output has gone; rich leaves with 1 then, which means fail here
        code = EXIT_ERROR
    except OSError as exc:  # a file or directory that may not be read or written, wherever it is
        error = EdgeExportError(f"Cannot use {exc.filename}." if exc.filename else "A file cannot be used.", why=exc.strerror or str(exc))
        if as_json:
            show_json(error)
        else:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        code = EXIT_ERROR
    sys.exit(code)
