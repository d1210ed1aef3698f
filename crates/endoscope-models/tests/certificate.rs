//! The certificate of every golden model passes, against transformers' activations too; and each wrong model is found out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use candle_core::{Device, Tensor};
use common::*;
use endoscope_models::certificate::{Against, Assertion, Certificate, Reference, Verdict, certify, sample_prompts};
use endoscope_models::{Family, Model};
use serde_json::{Value, json};

fn certificate(model: &Model, against: Against) -> Certificate {
    certify(model, &sample_prompts(model), against, &mut |_, _| {}).unwrap()
}

fn failures(certificate: &Certificate) -> String {
    let failed = certificate.failed();
    failed
        .map(|check| {
            format!(
                "{:?}: {:?} > {:e} at {:?}, {:?}\n",
                check.name, check.worst, check.tolerance, check.site, check.notes
            )
        })
        .collect()
}

/// The largest golden of a model.
fn longest_golden(directory: &std::path::Path) -> std::path::PathBuf {
    let goldens = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let goldens = goldens.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("seq"));
    goldens.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

#[test]
fn every_golden_model_is_certified() {
    let mut families = std::collections::BTreeSet::new();
    let mut worst: std::collections::BTreeMap<Assertion, (f64, String)> = std::collections::BTreeMap::new();
    for directory in golden_models() {
        let model = Model::open(&directory).unwrap();
        let reference = Reference::read(&longest_golden(&directory)).unwrap();
        let certificate = certificate(&model, Against::Reference(&reference));
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(certificate.verdict(), Verdict::Passed, "{name}\n{}", failures(&certificate));
        assert_eq!(certificate.checks.len(), Assertion::ALL.len());
        for check in &certificate.checks {
            let figure = check.worst.unwrap_or(0.);
            if worst.get(&check.name).is_none_or(|(before, _)| figure > *before) {
                worst.insert(check.name, (figure, name.clone()));
            }
        }
        families.insert(model.family.model_type());
    }
    for (assertion, (figure, model)) in worst {
        println!("{assertion:?}: at most {figure:e} ({model}), {:e} allowed", assertion.tolerance());
    }
    assert_eq!(families.len(), Family::ALL.len());
}

#[test]
fn the_real_models_are_certified() {
    let organism = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction");
    for path in [Some(organism), shared_model("stories260k")].into_iter().flatten() {
        let model = Model::open(&path).unwrap();
        let certificate = certificate(&model, Against::Nothing);
        assert_eq!(certificate.verdict(), Verdict::Passed, "{}\n{}", path.display(), failures(&certificate));
        for assertion in [Assertion::RoundTrip, Assertion::BeginningOfSequence, Assertion::Vocabulary] {
            let check = certificate.check(assertion).unwrap();
            assert_eq!(check.verdict, Verdict::Passed, "{}: {check:?}", path.display());
        }
        println!("{certificate:?}");
    }
}

/// What finds a wrong model out.
#[derive(Debug, Clone, Copy)]
enum Caught {
    /// It does not open; this is in the error.
    AtLoading(&'static str),
    /// It is a model like any other, whose every equation holds; only that other's activations tell.
    ByReference,
}

type Weights = std::collections::HashMap<String, Tensor>;

/// Changes a golden model and asserts that it is found out where it is said to be.
fn caught(name: &str, what: &str, by: Caught, change: impl FnOnce(&mut Weights, &mut Value)) {
    let directory = goldens().join(name);
    let copy = copy(&directory);
    let (weights_path, config_path) = (copy.path().join("model.safetensors"), copy.path().join("config.json"));
    let mut weights = load(&weights_path);
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&config_path).unwrap()).unwrap();
    change(&mut weights, &mut config);
    candle_core::safetensors::save(&weights, &weights_path).unwrap();
    std::fs::write(&config_path, config.to_string()).unwrap();
    match (Model::open(copy.path()), by) {
        (Err(error), Caught::AtLoading(part)) => {
            let error = error.to_string();
            assert!(error.contains(part), "{name}, {what}: `{part}` is not in {error}");
        }
        (Ok(model), Caught::ByReference) => {
            let reference = Reference::read(&longest_golden(&directory)).unwrap();
            let certificate = certificate(&model, Against::Reference(&reference));
            let failed: Vec<Assertion> = certificate.failed().map(|check| check.name).collect();
            assert_eq!(failed, [Assertion::Reference], "{name}, {what}");
            let check = certificate.check(Assertion::Reference).unwrap();
            // By its size or its shape, not by luck.
            assert!(
                check.worst.unwrap() > 3. * check.tolerance || !check.notes.is_empty(),
                "{name}, {what}: only {:?} of {:e}",
                check.worst,
                check.tolerance
            );
        }
        (Err(error), Caught::ByReference) => panic!("{name}, {what}: it does not open: {error}"),
        (Ok(_), Caught::AtLoading(_)) => panic!("{name}, {what}: it opens"),
    }
}

fn swap(a: &'static str, b: &'static str) -> impl FnOnce(&mut Weights, &mut Value) {
    move |weights, _| {
        let (first, second) = (weights[a].clone(), weights[b].clone());
        weights.insert(a.into(), second);
        weights.insert(b.into(), first);
    }
}

fn transpose(name: &'static str) -> impl FnOnce(&mut Weights, &mut Value) {
    move |weights, _| {
        let transposed = weights[name].t().unwrap().contiguous().unwrap();
        weights.insert(name.into(), transposed);
    }
}

fn remove(ends: &'static [&'static str]) -> impl FnOnce(&mut Weights, &mut Value) {
    move |weights, _| {
        let before = weights.len();
        weights.retain(|name, _| !ends.iter().any(|end| name.ends_with(end)));
        assert!(weights.len() < before);
    }
}

fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Weights, &mut Value) {
    move |_, config| {
        assert_ne!(config[key], value);
        config[key] = value;
    }
}

fn rope(key: &'static str, value: Value) -> impl FnOnce(&mut Weights, &mut Value) {
    move |_, config| {
        assert_ne!(config["rope_parameters"][key], value);
        config["rope_parameters"][key] = value;
    }
}

#[test]
fn what_does_not_fit_is_caught_at_loading() {
    use Caught::AtLoading;
    let q = "model.layers.0.self_attn.q_proj.weight";
    let k = "model.layers.0.self_attn.k_proj.weight";
    caught("llama-grouped", "q and k swapped", AtLoading("q_proj.weight` has shape"), swap(q, k));
    caught(
        "llama-grouped",
        "a matrix transposed",
        AtLoading("gate_proj.weight` has shape"),
        transpose("model.layers.1.mlp.gate_proj.weight"),
    );
    caught(
        "llama-grouped",
        "a bias dropped from the file",
        AtLoading("q_proj.bias` (shape [48]) is missing"),
        remove(&["1.self_attn.q_proj.bias"]),
    );
    caught(
        "llama-grouped",
        "biases dropped from the config",
        AtLoading("has no place for it"),
        set("attention_bias", json!(false)),
    );
    caught("llama-grouped", "head count", AtLoading("has shape"), set("num_attention_heads", json!(8)));
    caught("llama-grouped", "key/value head count", AtLoading("has shape"), set("num_key_value_heads", json!(3)));
    caught("llama-grouped", "tied without being so", AtLoading("cannot share"), set("num_key_value_heads", json!(4)));
    caught("llama-grouped", "a layer fewer", AtLoading("has no place for it"), set("num_hidden_layers", json!(2)));
    caught("llama-grouped", "an unknown switch", AtLoading("attention_sinks"), set("attention_sinks", json!(4)));
    caught(
        "qwen3-odd",
        "norms of queries dropped from the file",
        AtLoading("q_norm.weight` (shape [6]) is missing"),
        remove(&["q_norm.weight"]),
    );
    caught(
        "qwen3-odd",
        "norms of queries and keys dropped by the family",
        AtLoading("`layer_types`"),
        set("model_type", json!("llama")),
    );
    caught(
        "gemma2-odd",
        "norms after dropped by the family",
        AtLoading("`layer_types`"),
        set("model_type", json!("llama")),
    );
    caught(
        "olmo2-odd",
        "norms before instead of after",
        AtLoading("input_layernorm"),
        set("model_type", json!("llama")),
    );
    caught("mixtral-odd", "an expert fewer", AtLoading("has no place for it"), set("num_local_experts", json!(4)));
    caught("qwen2-odd", "weights that are not numbers", AtLoading("weights must be finite"), |weights, _| {
        let name = "model.layers.0.mlp.up_proj.weight";
        let broken = (weights[name].zeros_like().unwrap() / 0.).unwrap();
        weights.insert(name.into(), broken);
    });
}

#[test]
fn wrong_weights_are_caught_by_the_reference() {
    use Caught::ByReference;
    type Mutation = Box<dyn FnOnce(&mut Weights, &mut Value)>;
    let opt = |what, change: Mutation| caught("opt-odd", what, ByReference, change);
    let (q, k) = ("model.decoder.layers.0.self_attn.q_proj.weight", "model.decoder.layers.0.self_attn.k_proj.weight");
    opt("q and k swapped", Box::new(swap(q, k)));
    opt("a square matrix transposed", Box::new(transpose("model.decoder.layers.1.self_attn.out_proj.weight")));
    opt("a query matrix transposed", Box::new(transpose(q)));
    let norms =
        ("model.decoder.layers.1.self_attn_layer_norm.weight", "model.decoder.layers.1.final_layer_norm.weight");
    opt("the norms of a layer swapped", Box::new(swap(norms.0, norms.1)));
    let layers = ("model.decoder.layers.0.fc1.weight", "model.decoder.layers.1.fc1.weight");
    opt("two layers swapped", Box::new(swap(layers.0, layers.1)));
    for bias in
        ["self_attn.q_proj.bias", "self_attn.out_proj.bias", "fc1.bias", "fc2.bias", "self_attn_layer_norm.bias"]
    {
        opt(
            bias,
            Box::new(move |weights: &mut Weights, _: &mut Value| {
                let name = format!("model.decoder.layers.0.{bias}");
                let zeros = weights[&name].zeros_like().unwrap();
                weights.insert(name, zeros);
            }),
        );
    }
    caught("llama-grouped", "biases dropped from file and config", ByReference, |weights, config| {
        remove(&["q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"])(weights, config);
        set("attention_bias", json!(false))(weights, config);
    });
    caught(
        "llama-grouped",
        "gate and up swapped",
        ByReference,
        swap("model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight"),
    );
    caught(
        "llama-grouped",
        "embedding and unembedding swapped",
        ByReference,
        swap("model.embed_tokens.weight", "lm_head.weight"),
    );
    let sandwich = ("model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight");
    caught("gemma2-odd", "norms before and after attention swapped", ByReference, swap(sandwich.0, sandwich.1));
    let sandwich =
        ("model.layers.1.pre_feedforward_layernorm.weight", "model.layers.1.post_feedforward_layernorm.weight");
    caught("gemma2-odd", "norms before and after the MLP swapped", ByReference, swap(sandwich.0, sandwich.1));
    let norms = ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight");
    caught("qwen3-odd", "norms of queries and keys swapped", ByReference, swap(norms.0, norms.1));
    caught("qwen3-odd", "norms of queries and keys dropped from file and config", ByReference, |weights, config| {
        remove(&["q_norm.weight", "k_norm.weight"])(weights, config);
        let config = config.as_object_mut().unwrap();
        config.retain(|key, _| {
            !["layer_types", "max_window_layers", "sliding_window", "use_sliding_window"].contains(&key.as_str())
        });
        config["model_type"] = json!("llama");
    });
    caught("gemma-odd", "embeddings scaled in the file", ByReference, |weights, _| {
        let scaled = (&weights["model.embed_tokens.weight"] * 1.001).unwrap();
        weights.insert("model.embed_tokens.weight".into(), scaled);
    });
}

#[test]
fn wrong_switches_are_caught_by_the_reference() {
    use Caught::ByReference;
    caught("llama-grouped", "epsilon", ByReference, set("rms_norm_eps", json!(1e-5)));
    caught("gpt2-odd", "epsilon", ByReference, set("layer_norm_epsilon", json!(1e-4)));
    caught("llama-grouped", "rotary base", ByReference, rope("rope_theta", json!(10100.0)));
    caught("llama-linear", "rotary factor", ByReference, rope("factor", json!(3.5)));
    caught("llama-yarn", "rotary scaling dropped", ByReference, |_, config| {
        let base = config["rope_parameters"]["rope_theta"].clone();
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": base});
    });
    caught("llama-grouped", "heads of another width", ByReference, |_, config| {
        config["head_dim"] = json!(16);
        config["num_attention_heads"] = json!(3);
        config["num_key_value_heads"] = json!(1);
    });
    caught("gpt2-odd", "head count", ByReference, set("n_head", json!(4)));
    caught("mistral-sliding", "window", ByReference, set("sliding_window", json!(6)));
    caught("mistral-sliding", "window dropped", ByReference, set("sliding_window", Value::Null));
    caught(
        "gemma2-odd",
        "windows in the other layers",
        ByReference,
        set("layer_types", json!(["full_attention", "sliding_attention"])),
    );
    caught("gemma2-odd", "soft-cap of scores", ByReference, set("attn_logit_softcapping", json!(2.1)));
    caught("gemma2-odd", "soft-cap of scores dropped", ByReference, set("attn_logit_softcapping", Value::Null));
    caught("gemma2-odd", "soft-cap of logits", ByReference, set("final_logit_softcapping", json!(2.4)));
    caught("gemma2-odd", "attention scale", ByReference, set("query_pre_attn_scalar", json!(6)));
    caught("gpt_neox-parallel", "attention before the MLP", ByReference, set("use_parallel_residual", json!(false)));
    caught("gpt_neox-parallel", "rotary share", ByReference, |_, config| {
        let rope = &mut config["rope_parameters"]["partial_rotary_factor"];
        assert!(rope.is_number());
        *rope = json!(0.5);
    });
    for (key, value) in [
        ("embedding_multiplier", 1.),
        ("attention_multiplier", 0.5),
        ("residual_multiplier", 1.),
        ("logits_scaling", 1.),
    ] {
        caught("granite-odd", key, ByReference, set(key, json!(value)));
    }
    caught("olmo-clip_qkv", "no clipping", ByReference, set("clip_qkv", Value::Null));
    caught("qwen3_moe-odd", "experts' weights as they are", ByReference, set("norm_topk_prob", json!(false)));
    caught("mixtral-odd", "another number of active experts", ByReference, set("num_experts_per_tok", json!(3)));
    caught("llama-grouped", "activation", ByReference, set("hidden_act", json!("gelu")));
    caught("gpt2-odd", "exact GELU", ByReference, set("activation_function", json!("gelu")));
    caught("falcon-alibi", "no positions", ByReference, set("alibi", json!(false)));
}

#[test]
fn a_reference_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let write = |tensors: &[(&str, Tensor)]| {
        let tensors: Weights = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        Reference::read(&path).unwrap_err().to_string()
    };
    let site = Tensor::new(&[[1f32]], &Device::Cpu).unwrap();
    let tokens = |ids: &[i64]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    assert!(write(&[("hook_embed", site.clone())]).contains("it is no reference"));
    assert!(write(&[("tokens", tokens(&[1]))]).contains("it is no reference"));
    assert!(write(&[("hook_embed", site.clone()), ("tokens", site.clone())]).contains("whole numbers"));
    assert!(write(&[("hook_embed", site.clone()), ("tokens", tokens(&[-1]))]).contains("whole numbers"));
    assert!(write(&[("0/hook_embed", site.clone()), ("1/tokens", tokens(&[1]))]).contains("it is no reference"));
    std::fs::write(&path, b"not safetensors").unwrap();
    assert!(Reference::read(&path).unwrap_err().to_string().contains("cannot read"));
    assert!(Reference::read(&folder.path().join("gone")).is_err());
}

#[test]
fn sites_that_are_missing_on_either_side_fail() {
    let directory = goldens().join("gpt2-odd");
    let model = Model::open(&directory).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let check = |change: &dyn Fn(&mut Weights)| {
        let mut tensors = load(&directory.join("seq2.safetensors"));
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let reference = Reference::read(&path).unwrap();
        let certificate = certify(&model, &[vec![1, 2]], Against::Reference(&reference), &mut |_, _| {}).unwrap();
        certificate.check(Assertion::Reference).unwrap().clone()
    };
    assert_eq!(check(&|_| ()).verdict, Verdict::Passed);
    assert_eq!(check(&|tensors| drop(tensors.remove("blocks.1.attn.hook_result"))).verdict, Verdict::Passed);
    let missing = check(&|tensors| drop(tensors.remove("blocks.1.attn.hook_z")));
    assert_eq!(missing.verdict, Verdict::Failed);
    assert!(missing.notes[0].contains("the reference has no blocks.1.attn.hook_z"), "{missing:?}");
    let more = check(&|tensors| drop(tensors.insert("hook_more".into(), tensors["hook_embed"].clone())));
    assert_eq!(more.verdict, Verdict::Failed);
    assert!(more.notes[0].contains("which the model has not"), "{more:?}");
}

#[test]
fn a_tokenizer_that_does_not_fit_fails() {
    let organism = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction");
    let fails = |change: &dyn Fn(&mut Value), assertion: Assertion| {
        let copy = copy(&organism);
        let path = copy.path().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut tokenizer);
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        let model = Model::open(copy.path()).unwrap();
        let certificate = certificate(&model, Against::Nothing);
        let failed: Vec<Assertion> = certificate.failed().map(|check| check.name).collect();
        assert!(failed.contains(&assertion), "{failed:?}");
        certificate.check(assertion).unwrap().notes.join("; ")
    };
    let notes = fails(
        &|tokenizer| {
            let added = json!({"id": 66, "content": "<new>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true});
            tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        },
        Assertion::Vocabulary,
    );
    assert!(notes.contains("\"<new>\" (66)"), "{notes}");
    // A decoder that loses the blanks between words.
    let notes = fails(&|tokenizer| tokenizer["decoder"] = json!({"type": "Fuse"}), Assertion::RoundTrip);
    assert!(notes.contains("becomes"), "{notes}");
}
