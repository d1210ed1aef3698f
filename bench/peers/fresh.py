"""Runs a command once: when its first output came, and how much memory it took at most.

fresh.py COMMAND…; a process of its own, because a child's peak counts the memory of
whoever started it, and this one is small.
"""

import json
import os
import subprocess
import sys
import time


def main() -> None:
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
    assert process.stdout
    first = os.read(process.stdout.fileno(), 1 << 16)
    seconds = time.perf_counter() - start
    rest = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0 or not first:
        raise SystemExit(f"`{' '.join(sys.argv[1:])}` failed")
    document = {
        "seconds": seconds,
        "peak_bytes": 1024 * usage.ru_maxrss,
        "output": (first + rest).decode(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
