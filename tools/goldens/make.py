"""Makes the golden files of the Rust tests. See README.md.

Usage: bench/.venv/bin/python tools/goldens/make.py [PART ...]
"""

import argparse
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import graph_scores
import lens
import metrics
import torch
import weight_circuits
from older import older_config
from places import CAUSAL, MODELS, ROOT, STORIES
from recipes import LENGTH, Recipe
from safetensors.torch import save_file
from site_gradients import gradients
from sites import Sites, all_sites, load
from tiny_models import FAMILY_RECIPES, RECIPES, save
from tokenizers import Tokenizer
from torch import Tensor
from torch.testing import assert_close
from transformer_lens_side import (
    HEAT_MAPS,
    TOLERANCE,
    heat_map,
    hooked_gpt2,
    hooked_llama,
    largest_differences,
    logit_difference,
)
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

DIFFERENTIATED = (
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_attn_out",
    "mlp.hook_post",
)
GRADIENT_TOKENS = [5, 0, 17, 17, 30]

GENERATIONS = {  # prompt, new tokens; gpt2-odd has 40 positions in all
    "gpt2-odd": ([9, 26, 29], 37),
    "llama-grouped": ([28, 15, 13], 40),
}
LENS_PROMPTS = [[5, 0, 17, 17, 30, 8], [9, 26, 29]]
SMALLEST_LEAD = 1e-2  # of the best logit, so that rounding cannot change a choice

CLOSE = {"atol": 5e-5, "rtol": 1e-5}  # two ways to attend, which round differently
VISIBLE = 1e-2  # how much a switch must change some logit

PAIRS = [
    (
        "Once upon a time, there was a little girl named",
        "Once upon a time, there was a little boy named",
    ),
    ("The girl was happy. One day,", "The boy was happy. One day,"),
    ("The cat was very happy. The", "The dog was very happy. The"),
]


# --------------------------------------------------------------------------- the parts


def make_models() -> None:
    """The tiny models and all their sites."""
    for seed, (name, recipe) in enumerate(RECIPES.items()):
        make_model(name, recipe, seed)


def make_families() -> None:
    """Tiny models of every family, and what each of them turns."""
    for name, recipe in FAMILY_RECIPES.items():
        make_model(name, recipe, crc32(name.encode()))
        check_switches(name, recipe)
        make_older_config(name, recipe)
        if recipe.dtype == torch.bfloat16:
            tokens = random_tokens(recipe, LENGTH)
            logits = logits_of(load(MODELS / name, dtype=torch.bfloat16), tokens)
            write_tensors(
                MODELS / name / "bf16-logits.safetensors", tokens, {"logits": logits}
            )
    notes = {
        name: {"model_type": recipe.config.model_type, "switches": recipe.switches}
        for name, recipe in sorted((RECIPES | FAMILY_RECIPES).items())
    }
    write_json(MODELS / "notes.json", notes)


def make_model(name: str, recipe: Recipe, seed: int) -> None:
    """The directory of a recipe with the goldens of its lengths."""
    folder = MODELS / name
    save(recipe, folder, seed)
    model = load(folder)
    for length in recipe.lengths:
        tokens = random_tokens(recipe, length)
        sites = all_sites(model, tokens)
        # What users run by default is the same model as the one that can be watched.
        default = load(folder, attn_implementation=None)
        assert_close(logits_of(default, tokens), sites["hook_logits"], **CLOSE)
        check_choices(name, sites)
        if length > 10:
            sites = {
                site: value
                for site, value in sites.items()
                if not is_upper_result(site)
            }
        write_tensors(folder / f"seq{length}.safetensors", tokens, sites)


def check_choices(name: str, sites: Sites) -> None:
    """That rounding cannot change which experts are chosen, nor their order."""
    for site, chosen in sites.items():
        if site.endswith("hook_expert_indices"):
            logits = sites[site.replace("expert_indices", "gate")]
            best = logits.sort(-1, descending=True).values[..., : chosen.shape[-1] + 1]
            lead = -best.diff(dim=-1).max().item()
            assert lead > SMALLEST_LEAD, f"{name}: {site} is too close: {lead:.1e}"


def check_switches(name: str, recipe: Recipe) -> None:
    """That the numbers are others without each of the recipe's switches."""
    tokens = random_tokens(recipe, LENGTH)
    with_all = logits_of(load(MODELS / name), tokens)
    for key, neutral in recipe.without.items():
        config = AutoConfig.from_pretrained(MODELS / name)
        assert getattr(config, key) != neutral, f"{name}: {key} is {neutral} already"
        setattr(config, key, neutral)
        without = logits_of(load(MODELS / name, config=config), tokens)
        difference = (with_all - without).abs().max().item()
        assert difference > VISIBLE, f"{name}: {key} changes only {difference:.1e}"


def make_older_config(name: str, recipe: Recipe) -> None:
    """The configuration in older keys, which must mean the same to transformers."""
    config = json.loads((MODELS / name / "config.json").read_text())
    if "rope_parameters" not in config:
        return
    path = MODELS / name / "config.older.json"
    write_json(path, older_config(config))
    tokens = random_tokens(recipe, LENGTH)
    older = type(recipe.config).from_json_file(path)
    older_logits = logits_of(load(MODELS / name, config=older), tokens)
    assert torch.equal(older_logits, logits_of(load(MODELS / name), tokens)), name


def random_tokens(recipe: Recipe, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + length)
    return torch.randint(recipe.config.vocab_size, (1, length), generator=generator)


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> Tensor:
    """Logits in float32, whatever the model runs in."""
    logits: Tensor = model(tokens, use_cache=False).logits
    return logits.to(torch.float32)


def make_stories() -> None:
    """All sites of a real model, which TransformerLens must confirm."""
    tokens = torch.tensor(
        [json.loads((STORIES / "golden.json").read_text())["greedy_ids"][:12]]
    )
    model = load(STORIES)
    sites = all_sites(model, tokens)
    write_tensors(MODELS / "stories260k" / "seq12.safetensors", tokens, sites)

    differences = largest_differences(hooked_llama(model), tokens, sites)
    for kind, difference in differences.items():
        print(f"  {kind:24} differs from TransformerLens by {difference:.1e}")
    worst = max(differences, key=differences.__getitem__)
    if differences[worst] > TOLERANCE:
        raise SystemExit(f"{worst} differs by more than {TOLERANCE}")


def make_gradients() -> None:
    """Gradients of a logit difference with respect to sites."""
    tokens = torch.tensor([GRADIENT_TOKENS])
    for name in ("gpt2-odd", "llama-grouped"):
        found = gradients(
            load(MODELS / name), tokens, plus=3, minus=7, wanted=DIFFERENTIATED
        )
        write_tensors(MODELS / "gradients" / f"{name}.safetensors", tokens, found)


def make_generation() -> None:
    """Greedy continuations by transformers, which use its key-value cache."""
    generated = {}
    for name, (prompt, new_tokens) in GENERATIONS.items():
        model: Any = load(MODELS / name)
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for step, logits in enumerate(output.logits):
            best, second = logits[0].topk(2).values.tolist()
            assert best - second > SMALLEST_LEAD, (
                f"{name}: step {step} is too close a choice for a golden"
            )
        tokens = output.sequences[0, len(prompt) :].tolist()
        assert len(tokens) == new_tokens, f"{name} ended early"
        generated[name] = {"prompt": prompt, "generated": tokens}
    write_json(MODELS / "generation.json", {"source": source(), "models": generated})


def make_patching() -> None:
    """Activation patching by TransformerLens, and its prompts as a prompt file."""
    hooked = hooked_llama(load(STORIES))
    tokenizer = Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    prompts: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    runs: dict[str, list[float]] = {"clean": [], "corrupt": []}
    tables: dict[str, list[Any]] = {name: [] for name in HEAT_MAPS}
    for clean_text, corrupt_text in PAIRS:
        clean, corrupt = (
            torch.tensor([tokenizer.encode(text).ids])
            for text in (clean_text, corrupt_text)
        )
        assert clean.shape == corrupt.shape, (
            f"{clean_text!r} and {corrupt_text!r} differ in length"
        )
        with torch.no_grad():
            clean_logits, corrupt_logits = hooked(clean), hooked(corrupt)
        answers, wrong_answers = (
            [int(logits[0, -1].argmax())] for logits in (clean_logits, corrupt_logits)
        )
        assert answers != wrong_answers, (
            f"{clean_text!r} and {corrupt_text!r} have the same answer"
        )

        def metric(
            logits: Tensor,
            answers: list[int] = answers,
            wrong: list[int] = wrong_answers,
        ) -> Tensor:
            return logit_difference(logits, answers, wrong)

        ids = {"answers": answers, "wrong_answers": wrong_answers}
        prompts.append(
            {"clean": clean[0].tolist(), "corrupt": corrupt[0].tolist(), **ids}
        )
        texts.append({"clean": clean_text, "corrupt": corrupt_text, **ids})
        runs["clean"].append(rounded(metric(clean_logits)))
        runs["corrupt"].append(rounded(metric(corrupt_logits)))
        for name, table in tables.items():
            table.append(rounded(heat_map(hooked, name, clean, corrupt, metric)))
    write_json(
        CAUSAL / "stories260k_patch.json",
        {
            "source": source(),
            "prompts": prompts,
            "direction": "denoise: clean activations patched into the corrupt run",
            "metric": "logit_diff at the last position",
            **runs,
            "tables": tables,
        },
    )
    write_json(CAUSAL / "stories260k_pairs.json", {"prompts": texts})


def make_metrics() -> None:
    """Metrics of random logits."""
    write_json(CAUSAL / "metrics.json", {"source": source(), "cases": metrics.cases()})


def make_weights() -> None:
    """Heads in the weights, and the weights after processing, by TransformerLens."""
    tokens = torch.tensor([GRADIENT_TOKENS])
    models: dict[str, Any] = {}
    for name, folder, open_hooked in (
        ("gpt2-odd", MODELS / "gpt2-odd", hooked_gpt2),
        ("llama-grouped", MODELS / "llama-grouped", hooked_llama),
        ("stories260k", STORIES, hooked_llama),
    ):
        opened = partial(open_hooked, load(folder))
        models[name] = weight_circuits.circuits(opened())
        # TransformerLens reads none of the biases that this Llama has.
        if name != "llama-grouped":
            models[name]["processed"] = weight_circuits.processed(opened, tokens)
    write_json(MODELS / "weights.json", {"source": source(), "models": models})


def make_graph() -> None:
    """Edges, circuits and direct attribution by TransformerLens and torch."""
    document: dict[str, Any] = {"source": source()}
    document |= graph_scores.scores(hooked_gpt2(load(MODELS / "gpt2-odd")))
    stories = hooked_llama(load(STORIES))
    document["stories260k_direct"] = [
        graph_scores.direct(stories, torch.tensor([clean]))
        for clean, _ in graph_scores.PAIRS
    ]
    write_json(CAUSAL / "graph.json", document)


def make_exchange() -> None:
    """Direct attribution of another prompt's parts by TransformerLens."""
    hooked = hooked_gpt2(load(MODELS / "gpt2-odd"))
    pairs = [
        graph_scores.exchanged(hooked, torch.tensor([clean]), torch.tensor([corrupt]))
        for clean, corrupt in graph_scores.PAIRS
    ]
    write_json(
        CAUSAL / "direct_exchange.json", {"source": source(), "exchanged": pairs}
    )


def make_lens() -> None:
    """What each layer would say by TransformerLens; gradients of lenses by torch."""
    stories = json.loads((STORIES / "golden.json").read_text())["greedy_ids"][:9]
    for name, hooked, ids in (
        ("stories260k", hooked_llama(load(STORIES)), stories),
        ("gpt2-odd", hooked_gpt2(load(MODELS / "gpt2-odd")), LENS_PROMPTS[0]),
    ):
        tokens = torch.tensor([ids])
        write_tensors(
            CAUSAL / "lens" / f"{name}.safetensors",
            tokens,
            lens.reading(hooked, tokens),
        )
    hooked = hooked_gpt2(load(MODELS / "gpt2-odd"))
    prompts = [torch.tensor([ids]) for ids in LENS_PROMPTS]
    write_tensors(
        CAUSAL / "lens" / "gpt2-odd-translator.safetensors",
        prompts[0],
        lens.translator_gradient(hooked, prompts[0], "blocks.0.hook_resid_post"),
    )
    write_tensors(
        CAUSAL / "lens" / "gpt2-odd-jacobians.safetensors",
        prompts[0],
        lens.jacobians(hooked, prompts),
    )


PARTS = {
    "models": make_models,
    "families": make_families,
    "stories": make_stories,
    "gradients": make_gradients,
    "generation": make_generation,
    "patching": make_patching,
    "metrics": make_metrics,
    "graph": make_graph,
    "exchange": make_exchange,
    "lens": make_lens,
    "weights": make_weights,
}


# ----------------------------------------------------------------------------- writing


def source() -> str:
    return ", ".join(
        f"{package} {version(package)}"
        for package in ("torch", "transformers", "transformer-lens")
    )


def is_upper_result(site: str) -> bool:
    """Whether this is the largest site, in a layer where a long golden omits it."""
    return site.endswith("hook_result") and not site.startswith("blocks.0.")


def rounded(value: Tensor) -> Any:
    """Nested lists with 7 significant digits, which is what float32 holds."""
    if value.ndim == 0:
        return float(f"{value.item():.7g}")
    return [rounded(row) for row in value]


def write_tensors(path: Path, tokens: Tensor, sites: Sites) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": tokens, **sites}, path)
    announce(path)


def write_json(path: Path, value: Any) -> None:
    """One row of numbers a line, so that a change shows in a diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(value, "") + "\n")
    announce(path)


def lines(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict):
        items = [
            f"{json.dumps(key)}: {lines(item, inner)}" for key, item in value.items()
        ]
    elif isinstance(value, list) and any(
        isinstance(item, dict | list) for item in value
    ):
        items = [lines(item, inner) for item in value]
    else:
        return json.dumps(value)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{closing}"


def announce(path: Path) -> None:
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Makes the golden files of the Rust tests."
    )
    parser.add_argument(
        "parts", nargs="*", help=f"which to make, of {', '.join(PARTS)} (default: all)"
    )
    wanted = parser.parse_args().parts or list(PARTS)
    for part in wanted:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)  # the same sums in the same order each time
    disable_progress_bar()
    for part in wanted:
        PARTS[part]()


if __name__ == "__main__":
    main()
