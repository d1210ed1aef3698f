//! Sites by the names that other tools give them.

/// The site of a module of transformers, as sparsify names it (`layers.3`, `layers.3.mlp`, `model.layers.3.self_attn`): what the
/// module writes, and what it reads.
pub(crate) fn of_module(module: &str) -> Option<(String, Option<String>)> {
    if module.split('.').next_back() == Some("embed_tokens") {
        return Some(("hook_embed".into(), None));
    }
    let parts: Vec<&str> = module.split('.').collect();
    let at = parts.iter().position(|part| part.parse::<usize>().is_ok())?;
    if at == 0 || !["layers", "h", "blocks"].contains(&parts[at - 1]) {
        return None;
    }
    let layer = parts[at];
    let (writes, reads) = match parts[at + 1..] {
        [] => ("hook_resid_post", Some("hook_resid_pre")),
        ["mlp"] => ("hook_mlp_out", Some("hook_mlp_in")),
        ["attn" | "self_attn" | "attention"] => ("hook_attn_out", Some("hook_attn_in")),
        _ => return None,
    };
    Some((format!("blocks.{layer}.{writes}"), reads.map(|reads| format!("blocks.{layer}.{reads}"))))
}

/// The folder that sparsify gives a site; of a transcoder, of the site that it writes.
pub(crate) fn module_of(site: &str) -> Option<String> {
    if site == "hook_embed" {
        return Some("embed_tokens".into());
    }
    let (layer, part) = layer_and_part(site)?;
    let module = match part {
        "hook_resid_post" => "",
        "hook_mlp_out" => ".mlp",
        "hook_attn_out" => ".self_attn",
        _ => return None,
    };
    Some(format!("layers.{layer}{module}"))
}

/// `blocks.3.hook_resid_post` as 3 and `hook_resid_post`.
pub(crate) fn layer_and_part(site: &str) -> Option<(usize, &str)> {
    let (layer, part) = site.strip_prefix("blocks.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// The site of a point of a module of Gemma 3 in transformers (`model.layers.3.self_attn.o_proj.input`).
pub(crate) fn of_gemma_3(point: &str) -> Option<String> {
    let (layer, part) = point.strip_prefix("model.layers.")?.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let part = match part {
        "output" => "hook_resid_post",
        "self_attn.o_proj.input" => "attn.hook_z",
        "pre_feedforward_layernorm.output" => "hook_mlp_in",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        _ => return None,
    };
    Some(format!("blocks.{layer}.{part}"))
}

/// A hook of circuit-tracer within a layer, by our name: TransformerLens 3's names of the MLP's ends are ours of its projections.
pub(crate) fn of_circuit_tracer(layer: usize, hook: &str) -> String {
    let part = match hook {
        "mlp.hook_in" => "hook_mlp_in",
        "mlp.hook_out" => "hook_mlp_out",
        other => other,
    };
    format!("blocks.{layer}.{part}")
}
