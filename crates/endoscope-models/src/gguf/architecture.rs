//! Architectures: the metadata of each as the config.json of the model that it was converted from, and the names of its
//! weights. What a converter leaves out is put back as llama.cpp takes it for granted when it runs the file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::file::{GgufFile, Value};
use super::keys::{Keys, shown};
use super::names::Names;
use crate::error::{Error, Result};

/// One `general.architecture` that can be opened.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// What the file calls it.
    pub name: &'static str,
    /// Where its weights lie.
    pub names: Names,
    config: fn(&mut Keys, &Tensors) -> Map<String, Json>,
}

const fn architecture(
    name: &'static str,
    names: Names,
    config: fn(&mut Keys, &Tensors) -> Map<String, Json>,
) -> Architecture {
    Architecture { name, names, config }
}

const ARCHITECTURES: &[Architecture] = &[
    architecture("llama", Names::LLAMA, llama),
    architecture("qwen2", Names::PLAIN, qwen2),
    architecture("qwen3", Names::PLAIN, qwen3),
    architecture("qwen3moe", Names::EXPERTS, qwen3_moe),
    architecture("gemma", Names::GEMMA, gemma),
    architecture("gemma2", Names::GEMMA_SANDWICH, gemma2),
    architecture("gemma3", Names::GEMMA_SANDWICH, gemma3),
    architecture("phi2", Names::PHI2, phi2),
    architecture("phi3", Names::PHI3, phi3),
    architecture("gpt2", Names::GPT2, gpt2),
    architecture("gptneox", Names::GPTNEOX, gpt_neox),
    architecture("starcoder2", Names::STARCODER2, starcoder2),
    architecture("stablelm", Names::STABLELM, stablelm),
    architecture("falcon", Names::FALCON, falcon),
    architecture("starcoder", Names::STARCODER, starcoder),
    architecture("olmo", Names::LLAMA, olmo),
    architecture("smollm3", Names::LLAMA, smollm3),
    architecture("olmo2", Names::POST_NORMS, olmo2),
    architecture("granite", Names::LLAMA, granite),
];

/// Which tensors a file has, and how long their first axis is: some settings stand nowhere else.
pub struct Tensors<'a>(&'a GgufFile);

impl Tensors<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }

    fn rows(&self, name: &str) -> Option<usize> {
        self.0.tensors.get(name)?.shape.first().copied()
    }
}

impl Architecture {
    /// The architecture that a file names.
    pub fn of(file: &GgufFile) -> Result<Self> {
        let name = match file.metadata.get("general.architecture") {
            Some(Value::Text(name)) => name.as_str(),
            Some(other) => return Err(unknown(&file.path, shown(other))),
            None => return Err(unknown(&file.path, "(none)".into())),
        };
        let found = ARCHITECTURES.iter().copied().find(|known| known.name == name);
        found.ok_or_else(|| unknown(&file.path, name.to_string()))
    }

    /// The config.json that the file's metadata stand for.
    pub fn config(self, file: &GgufFile) -> Result<Map<String, Json>> {
        let mut keys = Keys::new(&file.metadata, self.name);
        for (key, plain) in [("general.type", "model"), ("adapter.type", "")] {
            if let Some(value) = file.metadata.get(key).filter(|value| **value != Value::Text(plain.into())) {
                keys.problem(format!("`{key}` is {}: it is no whole language model", shown(value)));
            }
        }
        let tensors = Tensors(file);
        let mut config = (self.config)(&mut keys, &tensors);
        let rows = tensors.rows("token_embd.weight").unwrap_or(1);
        if let Some(count) = keys.count("vocab_size").filter(|&count| count != rows as u64) {
            keys.problem(format!("`{}.vocab_size` is {count}, but `token_embd.weight` has {rows} rows", self.name));
        }
        config.insert("vocab_size".into(), rows.into());
        for (key, name) in [("bos", "bos_token_id"), ("eos", "eos_token_id")] {
            config.insert(name.into(), token_id(&file.metadata, &format!("tokenizer.ggml.{key}_token_id")));
        }
        keys.finish(&file.path)?;
        Ok(config)
    }
}

fn unknown(path: &Path, model_type: String) -> Error {
    let supported = ARCHITECTURES.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
    Error::UnknownFamily { path: path.to_path_buf(), model_type, supported }
}

fn token_id(metadata: &BTreeMap<String, Value>, key: &str) -> Json {
    match metadata.get(key) {
        Some(&Value::Integer(id)) => id.into(),
        _ => Json::Null,
    }
}

/// What most config.json files have in common.
fn common(keys: &mut Keys, tensors: &Tensors, model_type: &str, epsilon: &str) -> Map<String, Json> {
    let heads = keys.needed("attention.head_count");
    let kv_heads = keys.count("attention.head_count_kv").unwrap_or(heads);
    let mut config = object(json!({
        "model_type": model_type,
        "hidden_size": keys.needed("embedding_length"),
        "num_hidden_layers": keys.needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": keys.needed("feed_forward_length"),
        "max_position_embeddings": keys.needed("context_length"),
        "tie_word_embeddings": !tensors.has("output.weight"),
    }));
    let (key, name) = match epsilon {
        "rms_norm_eps" => ("attention.layer_norm_rms_epsilon", epsilon),
        _ => ("attention.layer_norm_epsilon", epsilon),
    };
    match keys.number(key) {
        Some(epsilon) => drop(config.insert(name.into(), epsilon.into())),
        None => keys.problem(format!("`{key}` is missing")),
    }
    config
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}

/// The width of a head, which keys and values share.
fn head_width(keys: &mut Keys, config: &Map<String, Json>) -> u64 {
    let number = |name: &str| config.get(name).and_then(Json::as_u64).unwrap_or(1);
    let width =
        keys.count("attention.key_length").unwrap_or(number("hidden_size") / number("num_attention_heads").max(1));
    let values = keys.count("attention.value_length").unwrap_or(width);
    if values != width {
        keys.problem(format!("keys are {width} wide and values {values}; only equal widths are supported"));
    }
    width
}

/// A head's width and its rotation, all of it or a part.
fn rotary(keys: &mut Keys, config: &mut Map<String, Json>, part: Option<&str>) {
    let width = head_width(keys, config);
    let turned = keys.count("rope.dimension_count").unwrap_or(width);
    match part {
        Some(name) => drop(config.insert(name.into(), (turned as f64 / width.max(1) as f64).into())),
        None if turned == width => {}
        None => keys.problem(format!("{turned} of {width} dimensions of a head are turned; all must be")),
    }
    config.insert("rope_theta".into(), keys.number("rope.freq_base").unwrap_or(10000.).into());
    scaling(keys, config);
}

/// Rope scaling that metadata name. Llama 3's stands in a tensor instead, which the weights bring.
fn scaling(keys: &mut Keys, config: &mut Map<String, Json>) {
    let factor = keys.number("rope.scaling.factor");
    let original = keys.count("rope.scaling.original_context_length");
    keys.switch("rope.scaling.finetuned");
    let scaling = match (keys.text("rope.scaling.type"), factor) {
        (None | Some("none"), None) => return,
        (None | Some("none" | "linear"), Some(1.)) => return,
        (Some("linear"), Some(factor)) => json!({"rope_type": "linear", "factor": factor}),
        (Some("yarn"), Some(factor)) => {
            json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original})
        }
        (kind, factor) => {
            keys.problem(format!("rope scaling {kind:?} by {factor:?} is not supported; linear and yarn are"));
            return;
        }
    };
    config.insert("rope_scaling".into(), scaling);
}

fn set(config: &mut Map<String, Json>, values: Json) {
    config.extend(object(values));
}

fn llama(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let experts = keys.count("expert_count").filter(|&count| count > 0);
    let mut config = common(keys, tensors, if experts.is_some() { "mixtral" } else { "llama" }, "rms_norm_eps");
    rotary(keys, &mut config, None);
    let head_dim = head_width(keys, &config);
    set(&mut config, json!({"hidden_act": "silu", "head_dim": head_dim}));
    let active = keys.count("expert_used_count").filter(|&count| count > 0);
    match (experts, active) {
        (Some(experts), active) => {
            set(&mut config, json!({"num_local_experts": experts, "num_experts_per_tok": active.unwrap_or(2)}));
        }
        (None, Some(_)) => keys.problem("experts are used, but there are none".into()),
        (None, None) => set(
            &mut config,
            json!({
                "attention_bias": tensors.has("blk.0.attn_q.bias"),
                "mlp_bias": tensors.has("blk.0.ffn_up.bias"),
            }),
        ),
    }
    config
}

fn qwen2(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "qwen2", "rms_norm_eps");
    rotary(keys, &mut config, None);
    set(&mut config, json!({"hidden_act": "silu"}));
    config
}

fn qwen3(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "qwen3", "rms_norm_eps");
    rotary(keys, &mut config, None);
    let head_dim = head_width(keys, &config);
    set(&mut config, json!({"hidden_act": "silu", "head_dim": head_dim, "attention_bias": false}));
    config
}

fn qwen3_moe(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = qwen3(keys, tensors);
    set(
        &mut config,
        json!({
            "model_type": "qwen3_moe",
            "num_experts": keys.needed("expert_count"),
            "num_experts_per_tok": keys.needed("expert_used_count"),
            "moe_intermediate_size": keys.needed("expert_feed_forward_length"),
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }),
    );
    config
}

fn gemma(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "gemma", "rms_norm_eps");
    rotary(keys, &mut config, None);
    let head_dim = head_width(keys, &config);
    set(&mut config, json!({"hidden_act": "gelu_pytorch_tanh", "head_dim": head_dim, "attention_bias": false}));
    config
}

/// Gemma 2 and 3 scale scores by a number that stands in no file: llama.cpp knows the largest model by its layers.
fn gemma_scale(keys: &mut Keys, config: &mut Map<String, Json>, largest: u64) {
    let number = |name: &str| config.get(name).and_then(Json::as_u64).unwrap_or(1);
    let scalar = match number("num_hidden_layers") == largest {
        true => number("hidden_size") / number("num_attention_heads").max(1),
        false => head_width(keys, config),
    };
    let head_dim = head_width(keys, config);
    set(
        config,
        json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": head_dim,
            "attention_bias": false,
            "query_pre_attn_scalar": scalar,
        }),
    );
}

fn gemma2(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "gemma2", "rms_norm_eps");
    rotary(keys, &mut config, None);
    gemma_scale(keys, &mut config, 46);
    set(
        &mut config,
        json!({
            "attn_logit_softcapping": keys.number("attn_logit_softcapping").unwrap_or(50.),
            "final_logit_softcapping": keys.number("final_logit_softcapping").unwrap_or(30.),
            "sliding_window": keys.needed("attention.sliding_window"),
        }),
    );
    config
}

fn gemma3(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "gemma3_text", "rms_norm_eps");
    rotary(keys, &mut config, None);
    gemma_scale(keys, &mut config, 62);
    set(
        &mut config,
        json!({
            "final_logit_softcapping": keys.number("final_logit_softcapping"),
            "rope_local_base_freq": keys.number("rope.freq_base_swa").unwrap_or(10000.),
            "sliding_window": keys.needed("attention.sliding_window"),
            "sliding_window_pattern": keys.count("attention.sliding_window_pattern").unwrap_or(6),
        }),
    );
    config
}

fn phi2(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "phi", "layer_norm_eps");
    rotary(keys, &mut config, Some("partial_rotary_factor"));
    keys.switch("attention.add_bos_token");
    set(&mut config, json!({"hidden_act": "gelu_new", "qk_layernorm": false}));
    config
}

fn phi3(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "phi3", "rms_norm_eps");
    rotary(keys, &mut config, Some("partial_rotary_factor"));
    set(&mut config, json!({"hidden_act": "silu"}));
    if let Some(window) = keys.count("attention.sliding_window").filter(|&window| window > 0) {
        config.insert("sliding_window".into(), window.into());
    }
    config
}

fn gpt2(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    object(json!({
        "model_type": "gpt2",
        "n_embd": keys.needed("embedding_length"),
        "n_layer": keys.needed("block_count"),
        "n_head": keys.needed("attention.head_count"),
        "n_inner": keys.needed("feed_forward_length"),
        "n_positions": keys.needed("context_length"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon").unwrap_or(1e-5),
        "activation_function": "gelu_new",
        "tie_word_embeddings": !tensors.has("output.weight"),
    }))
}

fn gpt_neox(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "gpt_neox", "layer_norm_eps");
    config.remove("num_key_value_heads");
    rotary(keys, &mut config, Some("rotary_pct"));
    if let Some(base) = config.remove("rope_theta") {
        config.insert("rotary_emb_base".into(), base);
    }
    let parallel = keys.switch("use_parallel_residual").unwrap_or(true);
    set(&mut config, json!({"hidden_act": "gelu", "use_parallel_residual": parallel}));
    config
}

fn starcoder2(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "starcoder2", "norm_epsilon");
    rotary(keys, &mut config, None);
    set(&mut config, json!({"hidden_act": "gelu_pytorch_tanh", "use_bias": tensors.has("blk.0.attn_q.bias")}));
    config
}

fn stablelm(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "stablelm", "layer_norm_eps");
    rotary(keys, &mut config, Some("partial_rotary_factor"));
    let parallel = keys.switch("use_parallel_residual").unwrap_or(false);
    set(
        &mut config,
        json!({
            "hidden_act": "silu",
            "use_qkv_bias": tensors.has("blk.0.attn_q.bias"),
            "qk_layernorm": tensors.has("blk.0.attn_q_norm.weight"),
            "use_parallel_residual": parallel,
        }),
    );
    config
}

/// Falcon 7b, and 40b and 11b with heads in groups. Those with ALiBi have no GGUF files.
fn falcon(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let heads = keys.needed("attention.head_count");
    let kv_heads = keys.count("attention.head_count_kv").unwrap_or(1);
    let two_norms = tensors.has("blk.0.attn_norm_2.weight");
    let grouped = two_norms || kv_heads > 1;
    // Which of two orders heads lie in; files of the other are older than the format.
    if let Some(layout) = keys.text("tensor_data_layout").filter(|&layout| layout != "jploski") {
        keys.problem(format!("`falcon.tensor_data_layout` is {layout:?}; only \"jploski\" is known"));
    }
    let mut config = object(json!({
        "model_type": "falcon",
        "hidden_size": keys.needed("embedding_length"),
        "num_hidden_layers": keys.needed("block_count"),
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "ffn_hidden_size": keys.needed("feed_forward_length"),
        "max_position_embeddings": keys.needed("context_length"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon").unwrap_or(1e-5),
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": if two_norms { 2 } else { 1 },
        "multi_query": !grouped,
        "parallel_attn": true,
        "bias": false,
        "alibi": false,
        "activation": "gelu",
        "tie_word_embeddings": !tensors.has("output.weight"),
    }));
    rotary(keys, &mut config, None);
    config
}

fn starcoder(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = gpt2(keys, tensors);
    if let Some(kv_heads) = keys.count("attention.head_count_kv").filter(|&kv_heads| kv_heads != 1) {
        keys.problem(format!("`starcoder.attention.head_count_kv` is {kv_heads}; only one for all heads is supported"));
    }
    let differs = json!({
        "model_type": "gpt_bigcode",
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": true,
    });
    set(&mut config, differs);
    config
}

fn olmo(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "olmo", "layer_norm_eps");
    rotary(keys, &mut config, None);
    // Not in config.json: OLMo's norms have always had this one.
    if let Some(epsilon) = config.remove("layer_norm_eps").filter(|epsilon| *epsilon != json!(1e-5)) {
        keys.problem(format!("`olmo.attention.layer_norm_epsilon` is {epsilon}; only 1e-5 is supported"));
    }
    set(
        &mut config,
        json!({
            "hidden_act": "silu",
            "attention_bias": false,
            "clip_qkv": keys.number("attention.clamp_kqv"),
        }),
    );
    config
}

fn smollm3(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = llama(keys, tensors);
    set(&mut config, json!({"model_type": "smollm3", "no_rope_layer_interval": 4}));
    config
}

fn olmo2(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "olmo2", "rms_norm_eps");
    rotary(keys, &mut config, None);
    set(&mut config, json!({"hidden_act": "silu", "attention_bias": false}));
    config
}

fn granite(keys: &mut Keys, tensors: &Tensors) -> Map<String, Json> {
    let mut config = common(keys, tensors, "granite", "rms_norm_eps");
    rotary(keys, &mut config, None);
    set(
        &mut config,
        json!({
            "hidden_act": "silu",
            "attention_bias": tensors.has("blk.0.attn_q.bias"),
            "mlp_bias": tensors.has("blk.0.ffn_up.bias"),
            "attention_multiplier": keys.number("attention.scale").unwrap_or(1.),
            "embedding_multiplier": keys.number("embedding_scale").unwrap_or(1.),
            "residual_multiplier": keys.number("residual_scale").unwrap_or(1.),
            "logits_scaling": keys.number("logit_scale").unwrap_or(1.),
        }),
    );
    config
}
