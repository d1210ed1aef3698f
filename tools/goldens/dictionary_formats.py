"""Makes crates/endoscope-dictionary/tests/goldens/formats: tiny dictionaries as other
tools write them, and what they make of inputs.

`CASE/` is a directory (or holds one deeper, where the path says what it is) and
`CASE.safetensors` has `x`, `latents` and `output`, by SAELens's own loader of the
format where it has one that does what the format's own code does, else by torch.

Usage: python tools/goldens/dictionary_formats.py
It needs SAELens; README.md says how it is installed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from places import DICTIONARY
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import load_file, save_file

GOLDENS = DICTIONARY / "formats"
D_IN, D_SAE, ROWS, LAYERS = 8, 24, 5, 3
GENERATOR = torch.Generator().manual_seed(11)
Tensors = dict[str, torch.Tensor]


def random(*shape: int) -> torch.Tensor:
    """Normal numbers times a half."""
    return torch.randn(shape, generator=GENERATOR) * 0.5


def weights() -> Tensors:
    """By SAELens's names and shapes."""
    return {
        "W_enc": random(D_IN, D_SAE),
        "W_dec": random(D_SAE, D_IN),
        "b_enc": random(D_SAE),
        "b_dec": random(D_IN),
        "threshold": random(D_SAE).abs(),
    }


def local(root: Path) -> None:
    """Makes SAELens's loaders look into a folder instead of the hub."""

    def file(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        path = root / subfolder / filename
        if not path.exists():
            # What hf_hub_download raises is what the loaders catch.
            raise loaders.EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        found = load_file(root / filename)
        return {name: list(value.shape) for name, value in found.items()}

    loaders.hf_hub_download = file
    loaders.get_safetensors_tensor_shapes = shapes


def by_saelens(loader: str, root: Path, folder: str, repo: str, **more: Any) -> Any:
    """What SAELens's loader makes of a folder."""
    local(root)
    told = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", **more}
    read = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]
    cfg, state, _ = read(repo, folder, "cpu", False, told)
    cfg = loaders.handle_config_defaulting(cfg)
    kind = SAE.get_sae_config_class_for_architecture(cfg["architecture"])
    dictionary = SAE.get_sae_class_for_architecture(cfg["architecture"])(
        kind.from_dict(cfg)
    )
    dictionary.load_state_dict({name: value.float() for name, value in state.items()})
    return dictionary


def keep(
    case: str, x: torch.Tensor, latents: torch.Tensor, output: torch.Tensor
) -> None:
    """Writes what is expected of a case."""
    active = (latents > 0).float().mean().item()
    assert 0.02 < active < 0.8, f"{case}: {active}"
    found = {"x": x, "latents": latents, "output": output}
    found = {name: value.detach().contiguous() for name, value in found.items()}
    save_file(found, GOLDENS / f"{case}.safetensors")


def keep_saelens(case: str, dictionary: Any) -> None:
    """The same of SAELens's dictionary."""
    x = random(ROWS, D_IN) * 3
    with torch.no_grad():
        keep(case, x, dictionary.encode(x), dictionary(x))


def folder(*parts: str) -> Path:
    """A new folder among the goldens."""
    path = GOLDENS.joinpath(*parts)
    path.mkdir(parents=True)
    return path


def gemma_scope() -> None:
    """params.npz, stored by rows, by columns and in 16 bits; and Gemma Scope 2."""
    inner = "layer_3/width_16k/average_l0_5"
    kinds: dict[str, Callable[[Any], Any]] = {
        "gemma-scope": lambda value: value,
        "gemma-scope-columns": np.asfortranarray,
        "gemma-scope-halves": lambda value: value.astype(np.float16),
    }
    for case, change in kinds.items():
        repo = "gemma-scope-2b-pt-res"
        path = folder(case, repo, inner)
        arrays = {name: change(value.numpy()) for name, value in weights().items()}
        np.savez(path / "params.npz", **arrays)
        root = GOLDENS / case / repo
        keep_saelens(case, by_saelens("gemma_2", root, inner, f"google/{repo}"))
    for case, name in [
        ("gemma-scope-2", "resid_post"),
        ("gemma-scope-2-skip", "transcoder"),
    ]:
        skip = name == "transcoder"
        inner = f"{name}/layer_2_width_16k{'_affine' if skip else ''}"
        path = folder(case, inner)
        found = {key.replace("W_", "w_"): value for key, value in weights().items()}
        point = "pre_feedforward_layernorm.output" if skip else "output"
        config = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": f"model.layers.2.{point}",
        }
        if skip:
            found["affine_skip_connection"] = random(D_IN, D_IN)
            config["affine_connection"] = True  # type: ignore[assignment]
            out = "model.layers.2.post_feedforward_layernorm.output"
            config["hf_hook_point_out"] = out
        save_file(found, path / "params.safetensors")
        (path / "config.json").write_text(json.dumps(config))
        keep_saelens(case, by_saelens("gemma_3", GOLDENS / case, inner, "google/x"))


def largest(pre: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, where they are positive."""
    values, at = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, at, values)


def sparsify() -> None:
    """cfg.json and sae.safetensors, as sparsify's SparseCoder computes."""
    for case, skip in [("sparsify", False), ("sparsify-skip", True)]:
        path = folder(case, "layers.4.mlp")
        told = {
            "activation": "topk",
            "expansion_factor": 3,
            "normalize_decoder": True,
            "num_latents": 0 if skip else D_SAE,
            "k": 4,
            "multi_topk": False,
            "skip_connection": skip,
            "transcode": skip,
            "d_in": D_IN,
        }
        found = {
            "encoder.weight": random(D_SAE, D_IN),
            "encoder.bias": random(D_SAE),
            "W_dec": random(D_SAE, D_IN),
            "b_dec": random(D_IN),
        }
        if skip:
            found["W_skip"] = random(D_IN, D_IN)
        (path / "cfg.json").write_text(json.dumps(told))
        (path.parent / "config.json").write_text(json.dumps({"model": "a/b"}))
        save_file(found, path / "sae.safetensors")
        x = random(ROWS, D_IN) * 3
        shifted = x if skip else x - found["b_dec"]
        pre = shifted @ found["encoder.weight"].T + found["encoder.bias"]
        latents = largest(pre, 4)
        output = latents @ found["W_dec"] + found["b_dec"]
        if skip:
            output = output + x @ found["W_skip"].T
        keep(case, x, latents, output)


class Stored(torch.nn.Module):  # type: ignore[misc]
    """Parameters and buffers by their names, for a state dictionary like a module's."""

    def __init__(self, found: Tensors) -> None:
        super().__init__()
        for name, value in found.items():
            parts = name.split(".")
            module: torch.nn.Module = self
            if len(parts) == 2:
                if parts[0] not in self._modules:
                    self.add_module(parts[0], torch.nn.Module())
                module = getattr(self, parts[0])
            if value.is_floating_point():
                module.register_parameter(parts[-1], torch.nn.Parameter(value))
            else:
                module.register_buffer(parts[-1], value)


def dictionary_learning() -> None:
    """config.json and ae.pt of every class, as SAELens reads them."""
    linear = {
        "encoder.weight": random(D_SAE, D_IN),
        "decoder.weight": random(D_IN, D_SAE),
        "encoder.bias": random(D_SAE),
    }
    bias = random(D_IN)
    plain = weights()
    single = torch.tensor(0.4)
    gated = {name: value for name, value in linear.items() if name != "encoder.bias"}
    gated |= {"r_mag": random(D_SAE), "gate_bias": random(D_SAE)}
    gated |= {"mag_bias": random(D_SAE), "decoder_bias": bias}
    topk = {
        **linear,
        "b_dec": bias,
        "k": torch.tensor(4),
        "threshold": torch.tensor(-1.0),
    }
    batch = {**linear, "b_dec": bias, "k": torch.tensor(4), "threshold": single}
    levels = {**plain, "threshold": single, "k": torch.tensor(4)}
    levels["group_sizes"] = torch.tensor([8, 16])
    # A decoder that is stored by columns, in 16 bits.
    columns = {**linear, "decoder.weight": random(D_SAE, D_IN).half().T, "bias": bias}
    cases: dict[str, tuple[str, Tensors]] = {
        "standard": ("AutoEncoder", {**linear, "bias": bias}),
        "columns": ("AutoEncoder", columns),
        "gated": ("GatedAutoEncoder", gated),
        "jumprelu": ("JumpReluAutoEncoder", plain),
        "topk": ("AutoEncoderTopK", topk),
        "batchtopk": ("BatchTopKSAE", batch),
        "matryoshka": ("MatryoshkaBatchTopKSAE", levels),
        "new": ("AutoEncoderNew", {**linear, "decoder.bias": bias}),
    }
    for name, (kind, found) in cases.items():
        case = f"dictionary-learning-{name}"
        path = folder(case)
        trainer = {
            "dict_class": kind,
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "k": 4,
            "layer": 3,
            "lm_name": "a/b",
            "submodule_name": "resid_post_layer_3",
        }
        config = {"trainer": trainer, "buffer": {"ctx_len": 16}}
        (path / "config.json").write_text(json.dumps(config))
        state = found if name in ("columns", "jumprelu") else Stored(found).state_dict()
        torch.save(state, path / "ae.pt")
        if name == "new":
            x = random(ROWS, D_IN) * 3
            latents = (x @ linear["encoder.weight"].T + linear["encoder.bias"]).relu()
            keep(case, x, latents, latents @ linear["decoder.weight"].T + bias)
        else:
            keep_saelens(
                case, by_saelens("dictionary_learning_1", path.parent, case, "a/b")
            )
    # What must not be read: it would call a function when it is loaded.
    hostile = folder("hostile-pickle")
    shutil.copy(GOLDENS / "dictionary-learning-standard/config.json", hostile)
    torch.save({"encoder.weight": Hostile()}, hostile / "ae.pt")


class Hostile:
    """Would write a file if somebody executed it."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return eval, ("open('executed', 'w')",)


def circuit_tracer() -> None:
    """config.yaml with a file for each layer, and of all layers together."""
    for case in ["circuit-tracer", "circuit-tracer-topk"]:
        path, topk = folder(case), case.endswith("topk")
        x, latents, output = random(LAYERS, ROWS, D_IN) * 3, [], []
        for layer in range(LAYERS):
            found = {name: value.T.contiguous() for name, value in weights().items()}
            found["W_dec"] = found["W_dec"].T.contiguous()
            threshold = found.pop("threshold")
            pre = x[layer] @ found["W_enc"].T + found["b_enc"]
            if topk:
                found["W_skip"] = random(D_IN, D_IN)
                active = largest(pre, 4)
            else:
                found["activation_function.threshold"] = threshold
                active = pre * (pre > threshold)
            wrote = active @ found["W_dec"] + found["b_dec"]
            if topk:
                wrote = wrote + x[layer] @ found["W_skip"].T
            save_file(found, path / f"layer_{layer}.safetensors")
            latents.append(active)
            output.append(wrote)
        lines = [
            "model_name: a/b",
            "model_kind: transcoder_set",
            "feature_input_hook: mlp.hook_in",
            'feature_output_hook: "hook_mlp_out"',
            "scan: [one, two]",
        ]
        lines += ["activation: topk", "k: 4"] if topk else []
        (path / "config.yaml").write_text("\n".join(lines) + "\n")
        keep(case, x, torch.stack(latents), torch.stack(output))
    for case in ["cross-layer", "cross-layer-relu"]:
        path, jump = folder(case), case == "cross-layer"
        x = random(LAYERS, ROWS, D_IN) * 3
        encoder, bias = random(LAYERS, D_SAE, D_IN), random(LAYERS, D_SAE)
        threshold, b_dec = random(LAYERS, D_SAE).abs(), random(LAYERS, D_IN)
        pre = torch.einsum("lbd,lfd->lbf", x, encoder) + bias[:, None]
        active = pre * (pre > threshold[:, None]) if jump else pre.relu()
        wrote = b_dec[:, None].repeat(1, ROWS, 1)
        for layer in range(LAYERS):
            decoder = random(D_SAE, LAYERS - layer, D_IN)
            wrote[layer:] += torch.einsum("bf,fld->lbd", active[layer], decoder)
            save_file({f"W_dec_{layer}": decoder}, path / f"W_dec_{layer}.safetensors")
            found = {
                f"W_enc_{layer}": encoder[layer],
                f"b_enc_{layer}": bias[layer],
                f"b_dec_{layer}": b_dec[layer],
            }
            if jump:
                found[f"threshold_{layer}"] = threshold[layer]
            save_file(found, path / f"W_enc_{layer}.safetensors")
        (path / "config.yaml").write_text(
            "model_name: a/b\nmodel_kind: cross_layer_transcoder\n"
            "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
        )
        keep(case, x, active, wrote)


def llama_scope() -> None:
    """hyperparams.json and checkpoints/final.safetensors, folded as SAELens folds."""
    path, norm = folder("llama-scope"), 5.5
    (path / "checkpoints").mkdir()
    told = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "jump_relu_threshold": 0.35,
        "hook_point_in": "blocks.2.hook_resid_post",
        "hook_point_out": "blocks.2.hook_resid_post",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
    }
    (path / "hyperparams.json").write_text(json.dumps(told))
    found = {
        "encoder.weight": random(D_SAE, D_IN),
        "encoder.bias": random(D_SAE),
        "decoder.weight": random(D_IN, D_SAE),
        "decoder.bias": random(D_IN),
    }
    save_file(found, path / "checkpoints/final.safetensors")
    dictionary = by_saelens("llama_scope", path.parent, "llama-scope", "fnlp/x")
    dictionary.fold_activation_norm_scaling_factor(D_IN**0.5 / norm)
    keep_saelens("llama-scope", dictionary)


def main() -> None:
    """Makes all of them anew."""
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for make in [
        gemma_scope,
        sparsify,
        dictionary_learning,
        circuit_tracer,
        llama_scope,
    ]:
        make()
    for path in GOLDENS.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
