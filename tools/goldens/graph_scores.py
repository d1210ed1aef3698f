"""Scores of edges, circuits and parts by TransformerLens and torch."""

import itertools
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

PAIRS = [
    ([1, 5, 3, 2, 9, 4], [1, 5, 7, 2, 9, 4]),
    ([2, 8, 8, 1, 0, 6], [2, 3, 8, 1, 7, 6]),
]
ANSWERS, WRONG = [3, 9], [4]
STEPS = 5

Hook = tuple[str, Callable[..., Any]]


def metric(logits: Tensor) -> Tensor:
    """Mean answer logit less mean wrong one at the last position, over all rows."""
    last = logits[:, -1]
    return (last[:, ANSWERS].mean(-1) - last[:, WRONG].mean(-1)).sum()


class Graph:
    """What writes and what reads, in order."""

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model
        layers, heads = model.cfg.n_layers, model.cfg.n_heads
        self.nodes: list[tuple[str, str, int | None]] = [
            ("input", "blocks.0.hook_resid_pre", None)
        ]
        self.readers: list[tuple[str, str, int | None, int]] = []
        for layer in range(layers):
            for part, head in itertools.product("qkv", range(heads)):
                site = f"blocks.{layer}.hook_{part}_input"
                self.readers.append(
                    (f"a{layer}.h{head}<{part}>", site, head, len(self.nodes))
                )
            for head in range(heads):
                self.nodes.append(
                    (f"a{layer}.h{head}", f"blocks.{layer}.attn.hook_result", head)
                )
            self.readers.append(
                (f"m{layer}", f"blocks.{layer}.hook_mlp_in", None, len(self.nodes))
            )
            self.nodes.append((f"m{layer}", f"blocks.{layer}.hook_mlp_out", None))
        last = f"blocks.{layers - 1}.hook_resid_post"
        self.readers.append(("logits", last, None, len(self.nodes)))

    def edges(self) -> Iterator[tuple[str, int, int]]:
        for reader, (name, _, _, count) in enumerate(self.readers):
            for node in range(count):
                yield f"{self.nodes[node][0]}->{name}", node, reader

    def writes(self, tokens: Tensor) -> list[Tensor]:
        _, cache = self.model.run_with_cache(tokens)
        return [self.write(cache[site], head) for _, site, head in self.nodes]

    @staticmethod
    def write(value: Tensor, head: int | None) -> Tensor:
        return value if head is None else value[:, :, head]

    def gradients(self, tokens: Tensor, hooks: list[Hook]) -> list[Tensor]:
        """The metric's gradient by what each reader reads."""
        found: dict[str, Tensor] = {}

        def keep(gradient: Tensor, hook: Any) -> None:
            found[hook.name] = gradient.detach().clone()

        sites = {site for _, site, _, _ in self.readers}
        backward = [(site, keep) for site in sites]
        with self.model.hooks(fwd_hooks=hooks, bwd_hooks=backward):
            metric(self.model(tokens)).backward()
        self.model.zero_grad()
        return [self.write(found[site], head) for _, site, head, _ in self.readers]

    def products(
        self, difference: list[Tensor], gradients: list[Tensor]
    ) -> dict[str, float]:
        return {
            name: float((difference[node] * gradients[reader]).sum())
            for name, node, reader in self.edges()
        }

    def eap(self, clean: Tensor, corrupt: Tensor) -> dict[str, float]:
        difference = [
            b - a for a, b in zip(self.writes(clean), self.writes(corrupt), strict=True)
        ]
        return self.products(difference, self.gradients(clean, []))

    def eap_ig(self, clean: Tensor, corrupt: Tensor) -> dict[str, float]:
        here, there = self.writes(clean), self.writes(corrupt)
        difference = [b - a for a, b in zip(here, there, strict=True)]
        total: list[Tensor] | None = None
        for step in range(STEPS):
            embedding = there[0] + step / STEPS * (here[0] - there[0])

            def replace(
                value: Tensor, hook: Any, embedding: Tensor = embedding
            ) -> Tensor:
                return embedding + 0 * value

            gradients = self.gradients(clean, [("blocks.0.hook_resid_pre", replace)])
            total = (
                gradients
                if total is None
                else [a + b for a, b in zip(total, gradients, strict=True)]
            )
        assert total is not None
        return self.products(difference, [gradient / STEPS for gradient in total])

    def run(self, clean: Tensor, corrupt: Tensor, kept: Callable[[str], bool]) -> float:
        """A circuit: readers read kept nodes as they are now, the others as corrupt."""
        there = self.writes(corrupt)
        now: dict[int, Tensor] = {}
        hooks: list[Hook] = []
        for node, (_, site, head) in enumerate(self.nodes):

            def keep(
                value: Tensor, hook: Any, node: int = node, head: int | None = head
            ) -> None:
                now[node] = self.write(value, head).detach().clone()

            hooks.append((site, keep))
        for name, site, head, count in self.readers:

            def read(
                value: Tensor,
                hook: Any,
                name: str = name,
                head: int | None = head,
                count: int = count,
            ) -> Tensor:
                change = torch.zeros_like(there[0])
                for node in range(count):
                    if not kept(f"{self.nodes[node][0]}->{name}"):
                        change = change + there[node] - now[node]
                value = value.clone()
                if head is None:
                    return value + change
                value[:, :, head] += change
                return value

            hooks.append((site, read))
        with torch.no_grad(), self.model.hooks(fwd_hooks=hooks):
            return float(metric(self.model(clean)))


def some_circuits(graph: Graph) -> list[list[str]]:
    names = [name for name, _, _ in graph.edges()]
    generator = torch.Generator().manual_seed(5)
    shares = [0.9, 0.6, 0.3]
    return [
        [
            name
            for name, x in zip(
                names, torch.rand(len(names), generator=generator), strict=True
            )
            if x < share
        ]
        for share in shares
    ]


def mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: round(sum(score[name] for score in scores) / len(scores), 8)
        for name in scores[0]
    }


def direct(model: HookedTransformer, clean: Tensor) -> dict[str, Any]:
    """Direct attribution by TransformerLens's cache."""
    _, cache = model.run_with_cache(clean)
    weights = model.W_U
    direction = weights[:, ANSWERS].mean(-1) - weights[:, WRONG].mean(-1)
    direction = direction * model.ln_final.w

    def along(stack: Tensor) -> list[float]:
        scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        return [round(float(x), 7) for x in (scaled @ direction).flatten()]

    layers = model.cfg.n_layers
    return {
        "heads": along(cache.stack_head_results(layer=-1, pos_slice=-1)),
        "mlps": along(
            torch.stack(
                [
                    cache[f"blocks.{layer}.hook_mlp_out"][:, -1]
                    for layer in range(layers)
                ]
            )
        ),
        "accumulated": along(cache.accumulated_resid(layer=-1, pos_slice=-1)),
        "neurons": along(cache.stack_neuron_results(layer=-1, pos_slice=-1)),
    }


@torch.no_grad()
def exchanged(
    model: HookedTransformer, clean: Tensor, corrupt: Tensor
) -> dict[str, Any]:
    """What heads and MLPs of the corrupt run contribute, read as the clean run is."""
    _, cache = model.run_with_cache(clean)
    _, other = model.run_with_cache(corrupt)
    direction = model.W_U[:, ANSWERS].mean(-1) - model.W_U[:, WRONG].mean(-1)
    direction = direction * model.ln_final.w
    mlps = [other["mlp_out", layer][:, -1] for layer in range(model.cfg.n_layers)]
    stacks = {
        "heads": other.stack_head_results(layer=-1, pos_slice=-1),
        "mlps": torch.stack(mlps),
    }
    scaled = {
        name: cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        for name, stack in stacks.items()
    }
    return {
        name: [round(float(x), 7) for x in (stack @ direction).flatten()]
        for name, stack in scaled.items()
    }


def integrated(
    model: HookedTransformer,
    clean: Tensor,
    corrupt: Tensor,
    site: str,
    steps: int | None,
) -> Tensor:
    """`(corrupt - clean) * gradient`: at the clean run, or the mean over midpoints."""
    _, here = model.run_with_cache(clean, names_filter=site)
    _, there = model.run_with_cache(corrupt, names_filter=site)
    total = torch.zeros_like(here[site])
    for step in range(steps or 1):
        along = (step + 0.5) / steps if steps else 0.0
        value = (
            (here[site] + along * (there[site] - here[site])).detach().requires_grad_()
        )

        def replace(_: Tensor, hook: Any, value: Tensor = value) -> Tensor:
            return value

        with model.hooks(fwd_hooks=[(site, replace)]):
            (gradient,) = torch.autograd.grad(metric(model(clean)), value)
        total = total + gradient
    return (there[site] - here[site]) * total / (steps or 1)


def scores(model: HookedTransformer) -> dict[str, Any]:
    """Everything, averaged over the pairs."""
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    model.set_use_hook_mlp_in(True)
    graph = Graph(model)
    pairs = [
        (torch.tensor([clean]), torch.tensor([corrupt])) for clean, corrupt in PAIRS
    ]
    baseline = [float(metric(model(clean))) for clean, _ in pairs]
    exact = []
    for pair, base in zip(pairs, baseline, strict=True):
        effects = {}
        for name, _, _ in graph.edges():
            effects[name] = graph.run(*pair, kept=partial(operator.ne, name)) - base
        exact.append(effects)
    circuits = []
    for kept in some_circuits(graph):
        values = [graph.run(*pair, kept=set(kept).__contains__) for pair in pairs]
        circuits.append({"edges": kept, "value": round(sum(values) / len(values), 7)})
    sites = {}
    for layer in range(model.cfg.n_layers):
        for name in ["hook_resid_pre", "hook_mlp_out", "attn.hook_z", "mlp.hook_post"]:
            site = f"blocks.{layer}.{name}"
            both = {}
            for key, steps in [("gradient", None), ("integrated", STEPS)]:
                products = torch.stack(
                    [integrated(model, *pair, site, steps) for pair in pairs]
                ).mean(0)[0]
                # Positions (and heads) are kept; neurons too where they are few.
                products = products if name == "mlp.hook_post" else products.sum(-1)
                both[key] = [round(float(x), 7) for x in products.flatten()]
            sites[site] = both
    return {
        "clean": [clean for clean, _ in PAIRS],
        "corrupt": [corrupt for _, corrupt in PAIRS],
        "answers": ANSWERS,
        "wrong_answers": WRONG,
        "steps": STEPS,
        "exact": mean(exact),
        "eap": mean([graph.eap(*pair) for pair in pairs]),
        "eap_ig": mean([graph.eap_ig(*pair) for pair in pairs]),
        "circuits": circuits,
        "direct": [direct(model, clean) for clean, _ in pairs],
        "estimates": sites,
    }
