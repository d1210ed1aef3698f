"""Makes crates/endoscope-dictionary/tests/goldens/saelens/*.safetensors: dictionaries
of random weights in every architecture of SAELens, and what SAELens makes of inputs.

A file holds the weights as SAELens stores them, `x`, and for each case `CASE latents`
and `CASE output`; its metadata `cases` has for each the directory's other files.

Usage: python tools/goldens/saelens_dictionaries.py
       python tools/goldens/saelens_dictionaries.py --check target/debug/endoscope
The second converts every case by that binary into a new directory, which SAELens must
load with the same outputs. Both need SAELens; README.md says how it is installed.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sae_lens
import torch
from places import DICTIONARY
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file, save_file

GOLDENS = DICTIONARY / "saelens"
D_IN, D_SAE, D_OUT, ROWS = 12, 40, 7, 6
NORMS = ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
TOLERANCE = 1e-5
METADATA = {
    "model_name": "tiny",
    "hook_name": "blocks.1.hook_resid_pre",
    "prepend_bos": True,
    "context_size": 16,
    "sae_lens_version": sae_lens.__version__,
    "neuronpedia_id": None,
    "note": {"of": ["our", "own"]},
}
Tensors = dict[str, torch.Tensor]
Settings = dict[str, Any]


@dataclass
class Case:
    """A directory: its cfg.json, its other small files, its weights."""

    name: str
    cfg: Settings
    weights: Tensors
    files: dict[str, Settings] = field(default_factory=dict)
    # How a checkpoint is read: by the trainer's classes, and saved for inference.
    scale: float | None = None
    checkpoint: bool = False

    def write(self, folder: Path) -> Path:
        """The directory in `folder`."""
        path = folder / self.name.replace(" ", "-")
        path.mkdir()
        (path / "cfg.json").write_text(json.dumps(self.cfg))
        for name, values in self.files.items():
            (path / name).write_text(json.dumps(values))
        save_file(
            {name: value.contiguous() for name, value in self.weights.items()},
            path / "sae_weights.safetensors",
        )
        return path

    def dictionary(self, folder: Path) -> Any:
        """What SAELens reads."""
        path = self.write(folder)
        if not self.checkpoint:
            return SAE.load_from_disk(path, dtype="float32")
        training: Any = TrainingSAE.load_from_disk(path, dtype="float32")
        if self.scale is not None:
            training.fold_activation_norm_scaling_factor(self.scale)
        training.save_inference_model(folder / "inference")
        return SAE.load_from_disk(folder / "inference", dtype="float32")


def outputs(dictionary: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and output of rows."""
    heads = dictionary.cfg.reshape_activations == "hook_z"
    with torch.no_grad():
        rows = x.reshape(ROWS, 3, -1) if heads else x
        latents = dictionary.encode(rows)
        return latents, dictionary(rows).reshape(ROWS, -1)


def random_weights(names: list[str], d_out: int, seed: int) -> Tensors:
    """Arrays of the names and shapes of SAELens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, d_out), "b_dec": (d_out,)}
    shapes["W_skip"] = (d_out, D_IN)
    found = {}
    for name in names:
        shape = shapes.get(name, (D_SAE,))
        found[name] = torch.randn(shape, generator=generator) * 0.5
    if "threshold" in found:
        found["threshold"] = found["threshold"].abs()
    return found


def cfg(architecture: str, **more: Any) -> Settings:
    """cfg.json of version 6."""
    return {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
        "architecture": architecture,
        **more,
    }


BASE = ["W_enc", "W_dec", "b_enc", "b_dec"]
GATED = ["W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"]


def autoencoders() -> Iterator[tuple[str, list[Case]]]:
    """Every architecture, normalised in every way, with b_dec subtracted or not."""
    kinds: list[tuple[str, str, list[str], Settings]] = [
        ("standard", "standard", BASE, {}),
        ("topk", "topk", BASE, {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("topk-rescaled", "topk", BASE, {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", "jumprelu", [*BASE, "threshold"], {}),
        ("gated", "gated", GATED, {}),
    ]
    for seed, (file, architecture, names, more) in enumerate(kinds):
        weights = random_weights(names, D_IN, seed)
        cases = []
        for norm in NORMS:
            for subtracted in [True, False]:
                told = {"normalize_activations": norm, **more}
                told["apply_b_dec_to_input"] = subtracted
                name = f"{norm} {'b_dec' if subtracted else 'plain'}"
                cases.append(Case(name, cfg(architecture, **told), weights))
        heads = {**METADATA, "hook_name": "blocks.1.attn.hook_z"}
        told = {"reshape_activations": "hook_z", "metadata": heads, **more}
        cases.append(Case("heads", cfg(architecture, **told), weights))
        yield file, cases


def transcoders() -> Iterator[tuple[str, list[Case]]]:
    """Every transcoder, with other widths on either side."""
    kinds = {
        "transcoder": BASE,
        "skip_transcoder": [*BASE, "W_skip"],
        "jumprelu_transcoder": [*BASE, "threshold"],
        "jumprelu_skip_transcoder": [*BASE, "threshold", "W_skip"],
    }
    for seed, (architecture, names) in enumerate(kinds.items()):
        weights = random_weights(names, D_OUT, 100 + seed)
        about = {**METADATA, "hook_name_out": "blocks.1.hook_mlp_out"}
        told = {"apply_b_dec_to_input": False, "d_out": D_OUT, "metadata": about}
        norms = {norm: {**told, "normalize_activations": norm} for norm in NORMS}
        cases = [
            Case(norm, cfg(architecture, **norms[norm]), weights) for norm in norms
        ]
        yield architecture, cases


def checkpoints() -> Iterator[tuple[str, list[Case]]]:
    """What trainings leave, read as SAELens would save it for inference."""
    weights = random_weights(BASE, D_IN, 200)
    weights["topk_threshold"] = torch.tensor(0.731, dtype=torch.float64)
    training = {"k": 4.5, "topk_threshold_lr": 0.01, "decoder_init_norm": 0.1}
    levels = {**training, "matryoshka_widths": [10, D_SAE]}
    cases = []
    kinds: dict[str, Settings] = {"batchtopk": training, "matryoshka_batchtopk": levels}
    for architecture, more in kinds.items():
        for rescaled in [True, False]:
            told: Settings = {"rescale_acts_by_decoder_norm": rescaled, **more}
            name = f"{architecture} {'rescaled' if rescaled else 'plain'}"
            plain = cfg(architecture, **told)
            cases.append(Case(name, plain, weights, checkpoint=True))
            told["normalize_activations"] = "expected_average_only_in"
            files = {"activation_scaler.json": {"scaling_factor": 0.37}}
            scaled = cfg(architecture, **told)
            cases.append(Case(f"{name} scaled", scaled, weights, files, 0.37, True))
    yield "checkpoints", cases


def before_six() -> Iterator[tuple[str, list[Case]]]:
    """Configurations of the versions before 6.0."""
    weights = random_weights([*BASE, "threshold"], D_IN, 300)
    plain = {name: weights[name] for name in BASE}
    old = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "mps",
        "model_name": "tiny",
        "hook_point": "blocks.1.hook_resid_pre",
        "hook_point_layer": 1,
        "hook_point_head_index": None,
        "dataset_path": "a/b",
        "l1_coefficient": 8e-05,
    }
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    exponents = {**plain, "log_threshold": weights["threshold"].log()}
    half = {name: value.to(torch.bfloat16) for name, value in plain.items()}
    ones = {**plain, "scaling_factor": torch.ones(D_SAE)}
    yield (
        "before-six",
        [
            Case("oldest", old, plain),
            Case("topk", {**old, **topk, "sae_lens_version": "5.3.1"}, plain),
            Case("whether", {**old, "normalize_activations": False}, plain),
            Case("layer", {**old, "normalize_activations": "layer_norm"}, plain),
            Case("unsaid", {**old, "normalize_activations": None}, plain),
            Case("heads", {**old, "hook_point": "blocks.0.attn.hook_z"}, plain),
            Case("plain", {**old, "apply_b_dec_to_input": False}, plain),
            Case("ones", {**old, "finetuning_scaling_factor": False}, ones),
            Case("halves", {**old, "dtype": "torch.bfloat16"}, half),
            Case("threshold", {**old, "architecture": "jumprelu"}, weights),
            Case("exponents", cfg("jumprelu"), exponents, checkpoint=True),
        ],
    )


def all_files() -> Iterator[tuple[str, list[Case]]]:
    """Every file with its cases."""
    yield from autoencoders()
    yield from transcoders()
    yield from checkpoints()
    yield from before_six()


def make() -> None:
    """Writes the goldens."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn((ROWS, D_IN), generator=generator) * 1.5 + 0.3
    for file, cases in all_files():
        tensors: Tensors = {"x": x}
        told: dict[str, Settings] = {}
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                found = outputs(case.dictionary(Path(folder)), x)
            active = (found[0] > 0).float().mean().item()
            assert 0.02 < active < 0.8, f"{file} {case.name}: {active}"
            tensors[f"{case.name} latents"], tensors[f"{case.name} output"] = found
            names = {}
            for name, value in case.weights.items():
                # Cases of a file may store an array differently.
                names[name] = f"{name} {value.dtype}"
                tensors[names[name]] = value
            told[case.name] = {
                "files": {"cfg.json": case.cfg, **case.files},
                "weights": names,
            }
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            GOLDENS / f"{file}.safetensors",
            {"cases": json.dumps(told)},
        )


def check(binary: Path) -> None:
    """Every case, converted by `binary`, is the same dictionary to SAELens."""
    count, worst = 0, 0.0
    for file, cases in all_files():
        golden = load_file(GOLDENS / f"{file}.safetensors")
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                path, to = case.write(Path(folder)), Path(folder) / "converted"
                command = [str(binary), "dict", "convert", str(path), str(to)]
                command += ["--format", "sae_lens"]
                subprocess.run(command, check=True, capture_output=True)
                found = outputs(SAE.load_from_disk(to), golden["x"])
            for name, values in zip(["latents", "output"], found, strict=True):
                expected = golden[f"{case.name} {name}"]
                difference = (values - expected).abs().max().item()
                worst = max(worst, difference)
                assert difference <= TOLERANCE, f"{file}, {case.name}: {difference}"
            count += 1
    print(f"{count} directories are the same to SAELens, within {worst:.1e}")


def main() -> None:
    """Makes the goldens, or checks a binary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, metavar="BINARY")
    binary = parser.parse_args().check
    make() if binary is None else check(binary)


if __name__ == "__main__":
    main()
