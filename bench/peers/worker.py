"""Endoscope's side: the binary, what it can do, and its bench workers."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Endoscope:
    """The binary, with the number of threads that its processes get."""

    def __init__(self, binary: Path, threads: int) -> None:
        self.binary = binary
        self.environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.help = subprocess.run(
            [binary, "bench", "--help"], check=True, capture_output=True, text=True
        ).stdout

    def can(self, arguments: Sequence[str]) -> bool:
        """Whether this build knows the work and every option of a worker."""
        options = [word for word in arguments if word.startswith("--")]
        works = re.findall(r"^\s+- ([\w-]+):", self.help, re.MULTILINE)
        known = all(re.search(rf"{option}\b", self.help) for option in options)
        return known and arguments[arguments.index("--work") + 1] in works

    def worker(self, arguments: Sequence[str]) -> "Worker":
        return Worker([str(self.binary), "bench", *arguments], self.environment)


class Worker:
    """A process that does its work once for each line "go" and answers with a line."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.command = command
        self.answer: dict[str, Any] = {}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )

    def __call__(self) -> float:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("go\n")
        except BrokenPipeError:
            pass  # it has ended; reading says so
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise SystemExit(f"`{' '.join(self.command)}` ended with status {status}")
        self.answer = json.loads(line)
        return float(self.answer["seconds"])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
