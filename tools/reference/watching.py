"""Forward hooks that keep what a running model reads and writes, under plain names.

Kept names: `PART.reads` and `PART.writes` of the model, `L.PART.reads` and `.writes` of
layer L. PART is a field of `Family`, or `layer`, or `fused`. What attention does
between its projections is seen by watching the calls of torch: `L.query`, `L.key` and
`L.value` as they are multiplied, `L.scores` before the softmax, `L.pattern` after it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from families import FAMILIES, Family
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

Keep = Callable[[str, Tensor], None]

PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
SOFTMAXES = {nn.functional.softmax, torch.softmax, torch.Tensor.softmax}

PARTS = ("ln1", "ln2", "ln1_post", "ln2_post", "gate", "linear", "gate_and_linear")
MORE_PARTS = ("down", "router", "experts")
ATTENTION_PARTS = ("query", "key", "value", "query_norm", "key_norm", "output")


def family_of(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    return list(needed(model, family_of(model).layers).children())


def module_at(parent: nn.Module, paths: str | None) -> nn.Module | None:
    """The first of the submodules `a|b` that is there."""
    for path in (paths or "").split("|"):
        module: Any = parent
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


class UnknownModelError(Exception):
    """A family or a variant of one that the tables do not describe."""


def needed(parent: nn.Module, paths: str) -> nn.Module:
    module = module_at(parent, paths)
    if module is None:
        name = type(parent).__name__
        raise UnknownModelError(f"{name} has no submodule {paths!r}: another variant")
    return module


def parts_of(family: Family, layer: nn.Module) -> dict[str, nn.Module]:
    """The modules of a layer by their field of the family; only those that it has."""
    attention = needed(layer, family.attention)
    parts = {
        part: module_at(layer, getattr(family, part)) for part in PARTS + MORE_PARTS
    }
    parts |= {
        part: module_at(attention, getattr(family, part)) for part in ATTENTION_PARTS
    }
    if family.fused is not None:
        parts["fused"] = module_at(attention, family.fused[0])
    return {part: module for part, module in parts.items() if module is not None} | {
        "layer": layer,
        "attention": attention,
    }


class AttentionWatch(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Keeps the two products and the softmax of the attention module that runs."""

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep
        self.layer: int | None = None
        self.awaited: tuple[str, ...] = ()

    def enter(self, layer: int) -> None:
        self.layer, self.awaited = layer, ("scores product", "softmax", "z product")

    def leave(self) -> None:
        assert not self.awaited, (
            f"layer {self.layer} of attention had no {self.awaited}"
        )
        self.layer = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.layer is None or not self.awaited or not isinstance(output, Tensor):
            return output
        awaited = self.awaited[0]
        if output.ndim == 4 and func in (
            SOFTMAXES if awaited == "softmax" else PRODUCTS
        ):
            if awaited == "scores product":
                self.keep(f"{self.layer}.query", args[0])
                self.keep(f"{self.layer}.key", args[1].mT)
            elif awaited == "softmax":
                self.keep(f"{self.layer}.scores", args[0])
                self.keep(f"{self.layer}.pattern", output)
            else:
                self.keep(f"{self.layer}.value", args[1])
            self.awaited = self.awaited[1:]
        return output


@contextmanager
def watched(model: PreTrainedModel, keep: Keep) -> Iterator[None]:
    """While open, hands every tensor that the family's table names to `keep`."""
    family = family_of(model)
    attention = AttentionWatch(keep)
    with ExitStack() as stack:

        def watch(module: nn.Module, name: str) -> None:
            def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
                read = args[0] if args else kwargs.get("hidden_states")
                if isinstance(read, Tensor):
                    keep(f"{name}.reads", read)

            def after(_module: nn.Module, _args: Any, output: Any) -> None:
                keep(
                    f"{name}.writes", output[0] if isinstance(output, tuple) else output
                )
                if isinstance(output, tuple) and name.endswith(".router"):
                    for number, part in enumerate(output):
                        keep(f"{name}.writes.{number}", part)

            # Read before the module runs, which may change its argument in place.
            stack.callback(
                module.register_forward_pre_hook(before, with_kwargs=True).remove
            )
            stack.callback(module.register_forward_hook(after).remove)

        def watch_attention(module: nn.Module, index: int) -> None:
            def before(_module: nn.Module, _args: Any, kwargs: Any) -> Any:
                attention.enter(index)
                return _args, biased_once(kwargs)

            def after(_module: nn.Module, _args: Any, _output: Any) -> None:
                attention.leave()

            stack.callback(
                module.register_forward_pre_hook(before, with_kwargs=True).remove
            )
            stack.callback(module.register_forward_hook(after).remove)

        for part in ("embedding", "positions", "final_norm"):
            path = getattr(family, part)
            if path is not None:
                watch(needed(model, path), part)
        for index, layer in enumerate(layers_of(model)):
            for part, module in parts_of(family, layer).items():
                if part == "attention":
                    watch_attention(module, index)
                else:
                    watch(module, f"{index}.{part}")
        stack.enter_context(attention)
        yield


def biased_once(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of attention in which ALiBi is there once.

    Falcon's eager attention adds `alibi` to the scores, and then the mask, into which
    transformers has put the same biases for the sake of its default attention (SDPA),
    which adds the mask alone. What the default gives is the model.
    """
    alibi, mask = kwargs.get("alibi"), kwargs.get("attention_mask")
    if alibi is None or mask is None:
        return kwargs
    seen = mask[mask > torch.finfo(mask.dtype).min / 2]
    return kwargs | {"alibi": torch.zeros_like(alibi)} if seen.any() else kwargs
