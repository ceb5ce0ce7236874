"""Steps for the tests of store, plan, scheduler and process: each does one thing that a real step may do, or may have done to it."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport import errors
from edgeexport.artifact import Kind, Spec
from edgeexport.graph import Graph
from edgeexport.plan import Plan
from edgeexport.step import Context, Refusal, Step, View

FILE = "text.txt"
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


class Fake(Step):
    """Takes anything, gives a data set."""

    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {}

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        return Spec(kind=Kind.DATASET)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        self.work(inputs, out, context)
        return Spec(kind=Kind.DATASET)

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        raise NotImplementedError


class Write(Fake):
    """Writes its inputs' texts and its own, after a while; in the scheduler's own process."""

    name: ClassVar[str] = "write"
    heavy: ClassVar[bool] = False

    text: str
    seconds: float = 0.0
    megabytes: int = 1

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        return self.megabytes

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        time.sleep(self.seconds)
        given = [(inputs[name].path / FILE).read_text(encoding="utf-8") for name in sorted(inputs)]
        (out / FILE).write_text("".join([*given, self.text]), encoding="utf-8")


class WriteApart(Write):
    """The same in a process of its own, telling how far it is."""

    name: ClassVar[str] = "write_apart"
    heavy: ClassVar[bool] = True

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        context.report(0.5, "half [way]")
        context.report(None, f"threads {context.threads}")
        super().work(inputs, out, context)


class Shout(Fake):
    """Writes its input in capitals: inputs that differ in case only give the same output."""

    name: ClassVar[str] = "shout"
    heavy: ClassVar[bool] = False

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        (out / FILE).write_text((inputs["given"].path / FILE).read_text(encoding="utf-8").upper(), encoding="utf-8")


class Raise(Fake):
    """Raises an error of the product by its class's name, or any built-in one; when a file is there."""

    name: ClassVar[str] = "raise"

    kind: str
    number: int | None = None
    after: Path = Path("/")

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        print("about to raise")
        while not self.after.exists():
            time.sleep(0.01)
        known = getattr(errors, self.kind, None)
        if known is not None:
            raise known("It is not there.", why="nobody put it there", hint="put it there")
        if self.kind == "OSError":
            raise OSError(self.number, os.strerror(self.number or 0))
        raise getattr(builtins, self.kind)("something odd")


class RaiseHere(Raise):
    """The same in the scheduler's own process."""

    name: ClassVar[str] = "raise_here"
    heavy: ClassVar[bool] = False


class Die(Fake):
    """Ends its process without a word to its supervisor."""

    name: ClassVar[str] = "die"

    how: int
    words: str = "last words"

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        print(f"first line\nsecond line\n{self.words}", flush=True)
        if self.how >= 0:
            os._exit(self.how)
        os.kill(os.getpid(), -self.how)


class Allocate(Fake):
    """Takes memory, itself or in a child, and keeps it."""

    name: ClassVar[str] = "allocate"

    megabytes: int
    in_child: bool = False

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        if self.in_child:
            subprocess.run([sys.executable, "-S", "-c", f"import time; kept = bytearray({self.megabytes} * 10**6); time.sleep(30)"], check=True)
        kept = bytearray(self.megabytes * 10**6)
        kept[::4096] = b"x" * len(kept[::4096])
        time.sleep(30)


class Spawn(Fake):
    """Starts a grandchild, tells both process ids, and waits or leaves it behind."""

    name: ClassVar[str] = "spawn"

    seconds: float

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        grandchild = subprocess.Popen(SLEEPER)
        context.report(None, f"{os.getpid()} {grandchild.pid}")
        time.sleep(self.seconds)


class Hang(Fake):
    """Tells its process id and hangs, the first time; is done at once when its scratch directory says that it was here before."""

    name: ClassVar[str] = "hang"

    def work(self, inputs: Mapping[str, View], out: Path, context: Context) -> None:
        marker = context.scratch / "was-here"
        first = not marker.exists()
        marker.touch()
        context.report(None, str(os.getpid()))
        time.sleep(60 if first else 0)
        (out / FILE).write_text("resumed", encoding="ascii")


class Slow(Write):
    """Writes; is expected to take long."""

    name: ClassVar[str] = "slow"
    seconds_guess: ClassVar[float] = 1000.0


class Needy(Write):
    """Needs a package that nobody has."""

    name: ClassVar[str] = "needy"
    backends: ClassVar[tuple[str, ...]] = ("no-such-distribution-anywhere",)
    extra: ClassVar[str | None] = "onnx"


def plan_of(steps: Mapping[str, tuple[Step, Mapping[str, str]]], alone: frozenset[str] = frozenset()) -> Plan:
    """A plan of steps with their inputs, each after those that it needs."""
    graph = Graph({})
    for node_id, (step, inputs) in steps.items():
        graph.must(node_id, step, inputs, alone=node_id in alone)
    first = next(iter(graph.nodes), "")
    return Plan(graph.nodes, {}, (), "", first, first)
