"""Times Endoscope against transformers and TransformerLens on one machine, in turns.

The model has GPT-2 small's shape and random weights. Each repetition runs every
contestant once, so that a change in the machine's speed meets all of them. Endoscope
runs as a worker process that does its work once for each line "go" and answers with its
own time; it sits idle while the others run. See README.md for what each work is.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # TransformerLens draws a bar within the timed work

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoModelForCausalLM, GPT2Config

ROOT = Path(__file__).resolve().parents[1]
AGREEMENT = 1e-3  # largest difference of logits between the two peers
GEMM_SIDE = 2048
COPY_BYTES = 1 << 28

Contestant = Callable[[], float]  # does the work once and says how many seconds it took


@dataclass(frozen=True)
class Work:
    """One kind of work: how Endoscope's worker is told of it, and who else does it."""

    title: str
    arguments: tuple[str, ...]
    peers: dict[str, Contestant]
    tokens: int | None = (
        None  # of one plain forward pass, for the share of the GEMM peak
    )


@dataclass(frozen=True)
class Machine:
    gemm_flops: float
    copy_bytes: float


# --------------------------------------------------------------------------- the model


def model_folder(cache: Path) -> Path:
    """A random model of GPT-2 small's shape, saved by transformers once."""
    folder = cache / "gpt2-small-random"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(GPT2Config())
        model.save_pretrained(folder)
    return folder


def hooked_gpt2(model: Any) -> HookedTransformer:
    """The model as a HookedTransformer with its weights as they are: no folding."""
    config = model.config
    hooked_config = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_heads=config.n_head,
        d_head=config.n_embd // config.n_head,
        d_mlp=4 * config.n_embd,
        d_vocab=config.vocab_size,
        n_ctx=config.n_positions,
        act_fn=config.activation_function,
        eps=config.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
    )
    hooked = HookedTransformer(hooked_config)
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(model, hooked_config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    hooked.train(False)
    return hooked


# ------------------------------------------------------------------------- contestants


class Worker:
    """Endoscope's bench worker."""

    def __init__(self, command: list[str], threads: int) -> None:
        self.command = command
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
        )

    def __call__(self) -> float:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("go\n")
        except BrokenPipeError:
            pass  # it has ended; reading says so
        answer = self.process.stdout.readline()
        if not answer:
            status = self.process.wait()
            raise SystemExit(f"`{' '.join(self.command)}` ended with status {status}")
        return float(json.loads(answer)["seconds"])

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def timed(work: Callable[[], object]) -> Contestant:
    def contestant() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return contestant


def works(
    model: Any, hooked: HookedTransformer, length: int, positions: int
) -> dict[str, Work]:
    """The works by name, on random tokens [1, length] and [1, positions]."""
    generator = torch.Generator().manual_seed(1)

    def random_tokens(count: int) -> Tensor:
        vocabulary = model.config.vocab_size
        return torch.randint(vocabulary, (1, count), generator=generator)

    tokens = random_tokens(length)
    clean, corrupt = random_tokens(positions), random_tokens(positions)

    def logit_difference(logits: Tensor) -> Tensor:
        return logits[0, -1, 0] - logits[0, -1, 1]

    def sweep() -> Tensor:
        _, cache = hooked.run_with_cache(clean)
        return patching.get_act_patch_resid_pre(
            hooked, corrupt, cache, logit_difference
        )

    def arguments(length: int) -> tuple[str, ...]:
        return ("--batch", "1", "--length", str(length))

    difference = (model(tokens).logits - hooked(tokens)).abs().max().item()
    if difference > AGREEMENT:
        raise SystemExit(f"the peers' logits differ by {difference:.1e}: no comparison")

    n_layers = model.config.n_layer
    return {
        "forward": Work(
            f"forward, 1 x {length}",
            arguments(length),
            {
                "transformers": timed(lambda: model(tokens, use_cache=False)),
                "TransformerLens": timed(lambda: hooked(tokens)),
            },
            tokens=length,
        ),
        "capture": Work(
            f"capture of all sites, 1 x {length}",
            arguments(length),
            {"TransformerLens": timed(lambda: hooked.run_with_cache(tokens))},
        ),
        "sweep": Work(
            f"resid_pre sweep, {n_layers} layers x {positions} positions",
            arguments(positions),
            {"TransformerLens": timed(sweep)},
        ),
    }


# --------------------------------------------------------------------------- measuring


def in_turns(
    contestants: dict[str, Contestant], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each contestant in each repetition, after one unmeasured turn."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repeats + 1):
        for name, contestant in contestants.items():
            seconds = contestant()
            if repetition > 0:
                samples[name].append(seconds)
    return samples


def measure_machine(repeats: int) -> Machine:
    """What the machine gives PyTorch, in float32 operations and bytes a second."""
    left, right = torch.randn(2, GEMM_SIDE, GEMM_SIDE)
    product = torch.empty(GEMM_SIDE, GEMM_SIDE)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    samples = in_turns(
        {
            "gemm": timed(lambda: torch.mm(left, right, out=product)),
            "copy": timed(lambda: target.copy_(source)),
        },
        repeats,
    )
    return Machine(
        gemm_flops=2 * GEMM_SIDE**3 / median(samples["gemm"]),
        copy_bytes=2 * COPY_BYTES / median(samples["copy"]),
    )


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


# --------------------------------------------------------------------------- reporting


def rows(
    work: Work, samples: dict[str, list[float]], flop: float, machine: Machine
) -> list[str]:
    """The table's rows of one work; ratios are the peer's time over Endoscope's."""
    ours = samples["Endoscope"]
    made = []
    for name, seconds in samples.items():
        middle = median(seconds)
        ratios = paired = "1"
        if name != "Endoscope":
            ratios = f"{middle / median(ours):.2f}"
            paired = f"{median(b / a for a, b in zip(ours, seconds, strict=True)):.2f}"
        share = f"{flop / middle / machine.gemm_flops:.0%}" if work.tokens else ""
        times = [f"{1e3 * value:.1f}" for value in (middle, min(seconds), max(seconds))]
        made.append(
            "| " + " | ".join([work.title, name, *times, ratios, paired, share]) + " |"
        )
    return made


HEADER = """\
| work | who | median ms | min | max | times Endoscope | in pairs | of GEMM peak |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main() -> None:
    names = ("forward", "capture", "sweep")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--endoscope",
        type=Path,
        default=ROOT / "target/release/endoscope",
        metavar="FILE",
    )
    add("--work", choices=names, nargs="+", default=names, help="default: all of them")
    add("--length", type=int, default=128, help="tokens of forward and capture")
    add("--positions", type=int, default=16, help="tokens of the sweep")
    add("--repeats", type=int, default=7)
    add("--threads", type=int, default=2)
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "endoscope-bench",
        metavar="DIR",
    )
    add(
        "--json", type=Path, metavar="FILE", help="writes every sample and the versions"
    )
    options = parser.parse_args()
    if not options.endoscope.is_file():
        parser.error(
            f"no {options.endoscope}: build it with `cargo build --release`, "
            "or name it with --endoscope"
        )

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    folder = model_folder(options.cache)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    parameters = model.num_parameters()
    all_works = works(model, hooked_gpt2(model), options.length, options.positions)
    machine = measure_machine(options.repeats)
    results: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        for name in options.work:
            work = all_works[name]
            command = [str(options.endoscope), "bench", str(folder), "--work", name]
            worker = Worker([*command, *work.arguments], options.threads)
            stack.callback(worker.close)
            results[name] = in_turns(
                {"Endoscope": worker, **work.peers}, options.repeats
            )
            print(f"{work.title}: done", file=sys.stderr)

    packages = ("torch", "transformers", "transformer-lens", "numpy")
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    print(
        f"{cpu_model()}, {options.threads} threads; "
        + ", ".join(map(" ".join, versions.items()))
    )
    print(
        f"GEMM peak {machine.gemm_flops / 1e9:.0f} GFLOP/s ({GEMM_SIDE}^3, float32), "
        f"copy {machine.copy_bytes / 1e9:.1f} GB/s (read + written); "
        f"medians of {options.repeats}\n"
    )
    print(HEADER)
    for name, samples in results.items():
        flop = 2.0 * parameters * (all_works[name].tokens or 0)
        print("\n".join(rows(all_works[name], samples, flop, machine)))
    print(
        f"\nOf GEMM peak: 2 x {parameters:,} parameters x tokens FLOP, over the median "
        "time and the peak; attention's own products are not counted."
    )
    if options.json:
        document = {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "load_average": os.getloadavg(),
            "versions": versions,
            "model": {"config": model.config.to_diff_dict(), "parameters": parameters},
            "machine": {
                "gemm_flop_per_s": machine.gemm_flops,
                "copy_bytes_per_s": machine.copy_bytes,
            },
            "seconds": {
                all_works[name].title: samples for name, samples in results.items()
            },
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
