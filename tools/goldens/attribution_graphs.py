"""Attribution graphs by circuit-tracer, over transcoders of random weights.

Usage: PYTHON tools/goldens/attribution_graphs.py, where PYTHON has circuit-tracer 0.5.0
(`pip install --no-deps circuit-tracer==0.5.0`: it asks for older libraries than it
needs, but for one constant).

Two differences are taken out of the way. circuit-tracer leaves out features and errors
of the first position, which it takes for a beginning of the text: here no position is
one. Its tokens are rows of the embedding, without learned positions: of the model that
has these, edges from tokens are not compared.
"""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "reference"))
from transformer_lens_side import (  # noqa: E402
    AS_THEY_ARE,
    hooked_gpt2,
    hooked_llama,
)

# Read when it is imported, and used for downloads only, of which there are none.
huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False

from circuit_tracer.attribution.attribute import attribute  # noqa: E402
from circuit_tracer.graph import Graph, prune_graph  # noqa: E402
from circuit_tracer.replacement_model import (  # noqa: E402
    replacement_model_transformerlens,
)
from circuit_tracer.transcoder.cross_layer_transcoder import (  # noqa: E402
    CrossLayerTranscoder,
    load_clt,
)
from circuit_tracer.transcoder.single_layer_transcoder import (  # noqa: E402
    TranscoderSet,
    load_relu_transcoder,
)
from circuit_tracer.utils.create_graph_files import (  # noqa: E402
    create_nodes,
    create_used_nodes_and_edges,
)

MODELS = ROOT / "crates/endoscope-models/tests/goldens"
OUT = ROOT / "crates/endoscope-dictionary/tests/goldens/graphs"
LATENTS = 9
TOKENS = [5, 0, 17, 17, 30]
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def random(*shape: int) -> Tensor:
    """Small random numbers."""
    return torch.randn(*shape) * 0.4


def write_layers(folder: Path, layers: int, width: int, skip: bool) -> TranscoderSet:
    """A transcoder for each layer, some with thresholds, as circuit-tracer keeps it."""
    transcoders = {}
    for layer in range(layers):
        arrays = {
            "W_enc": random(LATENTS, width),
            "b_enc": random(LATENTS),
            "W_dec": random(LATENTS, width),
            "b_dec": random(width),
        }
        if layer > 0:
            arrays["activation_function.threshold"] = random(LATENTS).abs() / 2
        if skip:
            arrays["W_skip"] = random(width, width)
        path = folder / f"layer_{layer}.safetensors"
        save_file(arrays, path)
        transcoders[layer] = load_relu_transcoder(str(path), layer)
    return TranscoderSet(transcoders, **HOOKS)


def write_cross_layer(folder: Path, layers: int, width: int) -> CrossLayerTranscoder:
    """A cross-layer transcoder."""
    for layer in range(layers):
        arrays = {
            f"W_enc_{layer}": random(LATENTS, width),
            f"b_enc_{layer}": random(LATENTS),
            f"b_dec_{layer}": random(width),
            f"threshold_{layer}": random(LATENTS).abs() / 2,
        }
        save_file(arrays, folder / f"W_enc_{layer}.safetensors")
        decoder = {f"W_dec_{layer}": random(LATENTS, layers - layer, width)}
        save_file(decoder, folder / f"W_dec_{layer}.safetensors")
    return load_clt(str(folder), **HOOKS, dtype=torch.float32)


class Tokenizer:
    """Names tokens by their ids; each could begin a text, so that none is put first."""

    all_special_ids = TOKENS
    padding_side = "right"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode(self, token: object) -> str:
        """The id."""
        return str(token)


def traced(
    hooked: HookedTransformer, transcoders: TranscoderSet | CrossLayerTranscoder
) -> Graph:
    """The whole graph of one prompt."""
    model = replacement_model_transformerlens.TransformerLensReplacementModel(
        hooked.cfg
    )
    weights = {name: value.clone() for name, value in hooked.state_dict().items()}
    model.load_and_process_state_dict(weights, **AS_THEY_ARE)
    model._configure_replacement_model(transcoders)
    model.zero_positions = slice(0, 0)
    model.tokenizer = Tokenizer(hooked.cfg.d_vocab)
    return attribute(
        torch.tensor(TOKENS), model, max_n_logits=4, desired_logit_prob=1.0
    )


def arrays_of(graph: Graph) -> dict[str, Tensor]:
    """Nodes and edges."""
    return {
        "tokens": torch.tensor(TOKENS),
        "features": graph.active_features[graph.selected_features].contiguous(),
        "activations": graph.activation_values[graph.selected_features].contiguous(),
        "logits": graph.logit_token_ids,
        "probabilities": graph.logit_probabilities,
        "adjacency": graph.adjacency_matrix,
    }


def pruned(graph: Graph) -> str:
    """What is left of it, as circuit-tracer's page reads it."""
    node_mask, edge_mask, scores = prune_graph(graph, 0.8, 0.98)
    nodes = create_nodes(graph, node_mask, None, scores.tolist())
    kept, links = create_used_nodes_and_edges(graph, nodes, edge_mask)
    value = {"nodes": [node.model_dump() for node in kept], "links": links}
    return json.dumps(value, indent=0)


def main() -> None:
    """Writes transcoders and graphs."""
    torch.manual_seed(7)
    shutil.rmtree(OUT, ignore_errors=True)
    for name, hook in [("gpt2-odd", hooked_gpt2), ("llama-sharded", hooked_llama)]:
        hooked = hook(AutoModelForCausalLM.from_pretrained(MODELS / name))
        layers, width = hooked.cfg.n_layers, hooked.cfg.d_model
        for kind in ["plain", "skip", "cross-layer"]:
            folder = OUT / f"{name}-{kind}"
            folder.mkdir(parents=True)
            model_kind = "transcoder_set"
            transcoders: TranscoderSet | CrossLayerTranscoder
            if kind == "cross-layer":
                model_kind = "cross_layer_transcoder"
                transcoders = write_cross_layer(folder, layers, width)
            else:
                transcoders = write_layers(folder, layers, width, kind == "skip")
            settings = {"model_name": name, "model_kind": model_kind, **HOOKS}
            lines = [f"{key}: {value}\n" for key, value in settings.items()]
            (folder / "config.yaml").write_text("".join(lines))
            graph = traced(hooked, transcoders)
            arrays = arrays_of(graph)
            edges = arrays["adjacency"].count_nonzero().item()
            print(f"{folder.name}: {len(arrays['features'])} features, {edges} edges")
            save_file(arrays, folder / "graph.safetensors")
            if name != "gpt2-odd":
                (folder / "graph.json").write_text(pruned(graph))
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
