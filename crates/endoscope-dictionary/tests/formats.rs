//! Foreign formats: each gives the latents and outputs of its own tool, and what is written is read as the same function.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use endoscope_dictionary::formats::{Contents, Format, open, save, save_cross_layer};
use endoscope_dictionary::{
    Activation, Config, CrossLayerTranscoder, Dictionary, Magnitude, Matrix, Normalization, Weights,
};
use proptest::prelude::*;

/// Two f32 programs that sum in another order; the largest outputs are about 30.
const TOLERANCE: f32 = 2e-5;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/formats")
}

/// `x`, `latents` and `output` of a case, each layer by itself.
struct Expected([Vec<Matrix>; 3]);

impl Expected {
    fn read(case: &str) -> Self {
        let tensors =
            candle_core::safetensors::load(goldens().join(format!("{case}.safetensors")), &Device::Cpu).unwrap();
        let layers = |tensor: &Tensor| match tensor.rank() {
            2 => vec![Matrix::from_tensor(tensor).unwrap()],
            _ => (0..tensor.dim(0).unwrap()).map(|at| Matrix::from_tensor(&tensor.get(at).unwrap()).unwrap()).collect(),
        };
        Self(["x", "latents", "output"].map(|name| layers(&tensors[name])))
    }

    fn check(&self, dictionary: &Dictionary, layer: usize, case: &str) {
        let Self([x, latents, output]) = self;
        let codes = dictionary.encode(&x[layer]).unwrap();
        close(&codes.latents.dense(), latents[layer].values(), case);
        close(dictionary.reconstruct(&x[layer]).unwrap().values(), output[layer].values(), case);
    }
}

fn close(found: &[f32], expected: &[f32], case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(worst <= TOLERANCE, "{case}: {worst}");
}

/// What a format says of a dictionary: sites, output, and one of the notes.
type Case<'a> = (&'a str, &'a str, Format, &'a str, Option<&'a str>, &'a str);

#[test]
fn every_format_computes_what_its_tool_computes() {
    let gemma = "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_5";
    let resid = "blocks.3.hook_resid_post";
    let cases: [Case; 16] = [
        ("gemma-scope", gemma, Format::GemmaScope, resid, None, ""),
        ("gemma-scope-columns", gemma, Format::GemmaScope, resid, None, ""),
        ("gemma-scope-halves", gemma, Format::GemmaScope, resid, None, ""),
        ("gemma-scope-2", "resid_post/layer_2_width_16k", Format::GemmaScope, "blocks.2.hook_resid_post", None, ""),
        (
            "gemma-scope-2-skip",
            "transcoder/layer_2_width_16k_affine",
            Format::GemmaScope,
            "blocks.2.hook_mlp_in",
            Some("blocks.2.hook_mlp_out"),
            "",
        ),
        ("sparsify", "layers.4.mlp", Format::Sparsify, "blocks.4.hook_mlp_out", None, ""),
        ("sparsify-skip", "layers.4.mlp", Format::Sparsify, "blocks.4.hook_mlp_in", Some("blocks.4.hook_mlp_out"), ""),
        ("dictionary-learning-standard", "", Format::DictionaryLearning, resid, None, ""),
        ("dictionary-learning-columns", "", Format::DictionaryLearning, resid, None, ""),
        ("dictionary-learning-gated", "", Format::DictionaryLearning, resid, None, ""),
        ("dictionary-learning-jumprelu", "", Format::DictionaryLearning, resid, None, ""),
        ("dictionary-learning-topk", "", Format::DictionaryLearning, resid, None, ""),
        ("dictionary-learning-batchtopk", "", Format::DictionaryLearning, resid, None, "read as jumprelu"),
        ("dictionary-learning-matryoshka", "", Format::DictionaryLearning, resid, None, "read as jumprelu"),
        ("dictionary-learning-new", "", Format::DictionaryLearning, resid, None, ""),
        ("llama-scope", "", Format::LlamaScope, "blocks.2.hook_resid_post", None, "is folded into the weights"),
    ];
    for (case, inner, format, site, output, note) in cases {
        let path = goldens().join(case).join(inner);
        let opened = open(&path).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(opened.format, format, "{case}");
        match note {
            "" => assert_eq!(opened.notes, [""; 0], "{case}"),
            _ => assert!(opened.notes.iter().any(|found| found.contains(note)), "{case}: {:?}", opened.notes),
        }
        let dictionary = opened.dictionary(&path).unwrap();
        let config = dictionary.config();
        assert_eq!((&config.sites[..], config.output_site.as_deref()), (&[site.to_string()][..], output), "{case}");
        Expected::read(case).check(&dictionary, 0, case);
    }
}

#[test]
fn circuit_tracer_keeps_a_set_of_layers() {
    for case in ["circuit-tracer", "circuit-tracer-topk"] {
        let path = goldens().join(case);
        let opened = open(&path).unwrap();
        let Contents::Set(paths) = &opened.contents else { panic!("{case}") };
        assert_eq!(paths.len(), 3);
        for (layer, path) in paths.iter().enumerate() {
            let dictionary = open(path).unwrap().dictionary(path).unwrap();
            assert_eq!(dictionary.config().sites, [format!("blocks.{layer}.hook_mlp_in")]);
            assert_eq!(dictionary.config().output_site, Some(format!("blocks.{layer}.hook_mlp_out")));
            assert_eq!(dictionary.config().metadata["scan"], serde_json::json!(["one", "two"]));
            Expected::read(case).check(&dictionary, layer, case);
            // Written and read again.
            let folder = tempfile::tempdir().unwrap();
            save(folder.path(), &dictionary, Format::CircuitTracer).unwrap();
            let again = folder.path().join(format!("layer_{layer}.safetensors"));
            Expected::read(case).check(&open(&again).unwrap().dictionary(&again).unwrap(), layer, case);
        }
        let error = opened.dictionary(&path).unwrap_err().to_string();
        assert!(error.contains("holds 3 dictionaries, of which one must be named"), "{error}");
    }
}

#[test]
fn cross_layer_transcoders_write_the_layers_above() {
    for case in ["cross-layer", "cross-layer-relu"] {
        let opened = open(goldens().join(case)).unwrap();
        let Contents::CrossLayer(transcoder) = &opened.contents else { panic!("{case}") };
        let check = |transcoder: &CrossLayerTranscoder| {
            let Expected([x, latents, output]) = Expected::read(case);
            let found = transcoder.encode(&x).unwrap();
            found.iter().zip(&latents).for_each(|(found, latents)| close(&found.dense(), latents.values(), case));
            let written = transcoder.decode(&found).unwrap();
            written.iter().zip(&output).for_each(|(found, output)| close(found.values(), output.values(), case));
            assert!(
                transcoder.encode(&x[..2]).unwrap_err().to_string().contains("2 layers of them, the transcoder has 3")
            );
        };
        check(transcoder);
        let folder = tempfile::tempdir().unwrap();
        save_cross_layer(folder.path(), transcoder).unwrap();
        let again = open(folder.path()).unwrap();
        assert_eq!(again.contents, opened.contents, "{case}");
    }
}

#[test]
fn folders_of_dictionaries_are_sets() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["layers.0", "layers.1.mlp"] {
        save(
            folder.path().join(name),
            &dictionary(Activation::TopK { k: 2, by_decoder_norm: false }, true),
            Format::Sparsify,
        )
        .unwrap();
    }
    let Contents::Set(paths) = open(folder.path()).unwrap().contents else { panic!() };
    assert_eq!(paths, ["layers.0", "layers.1.mlp"].map(|name| folder.path().join(name)));
    assert_eq!(open(&paths[0]).unwrap().dictionary(".").unwrap().config().sites, ["blocks.0.hook_resid_post"]);
}

#[test]
fn a_pickle_is_never_executed() {
    let error = open(goldens().join("hostile-pickle")).unwrap_err().to_string();
    assert!(error.contains("asks for `__builtin__.eval` in a pickle, where only tensors are read"), "{error}");
    assert!(!Path::new("executed").exists());
}

#[test]
fn broken_pickles_are_refused() {
    let source = goldens().join("dictionary-learning-standard");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let whole = fs::read(source.join("ae.pt")).unwrap();
    let path = folder.path().join("ae.pt");
    for length in (0..whole.len()).filter(|length| length % 67 < 2) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(open(folder.path()).is_err(), "{length}");
    }
    // The program itself, changed at each of its bytes.
    let start = whole.windows(2).position(|bytes| bytes == [0x80, 2]).unwrap();
    for at in start..start + 700 {
        for change in [0x01, 0x80, 0xff] {
            let mut wrong = whole.clone();
            wrong[at] ^= change;
            fs::write(&path, &wrong).unwrap();
            let _ = open(folder.path());
        }
    }
    fs::write(&path, b"\x80\x02}q\x00.").unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("it is not a zip file: torch before 1.6 wrote it"), "{error}");
}

#[test]
fn compressed_arrays_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = goldens().join("gemma-scope/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_5/params.npz");
    let mut bytes = fs::read(source).unwrap();
    // The method of compression in the first local header and in the first entry of the central directory.
    let entry = bytes.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    bytes[8] = 8;
    bytes[entry + 10] = 8;
    fs::write(folder.path().join("params.npz"), bytes).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is compressed in it; write it again as it is (numpy.savez"), "{error}");
}

#[test]
fn changed_bytes_are_read_or_refused() {
    let gemma = "gemma-scope/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_5";
    let files = [
        (gemma, "params.npz"),
        ("sparsify/layers.4.mlp", "cfg.json"),
        ("sparsify/layers.4.mlp", "sae.safetensors"),
        ("circuit-tracer", "config.yaml"),
        ("cross-layer", "W_dec_1.safetensors"),
        ("llama-scope", "hyperparams.json"),
    ];
    for (source, file) in files {
        let folder = tempfile::tempdir().unwrap();
        copy(&goldens().join(source), folder.path());
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        // Headers lie at either end.
        for at in (0..whole.len()).filter(|at| *at < 300 || whole.len() - at < 300).step_by(4) {
            for change in [0x01, 0x80] {
                let mut wrong = whole.clone();
                wrong[at] ^= change;
                fs::write(&path, &wrong).unwrap();
                match open(folder.path()).map(|opened| opened.contents) {
                    Ok(Contents::Set(paths)) => paths.iter().for_each(|path| drop(open(path))),
                    Ok(_) => {}
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > 0, "{source}, {file}: {refused}");
    }
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            }
            false => fs::write(to, fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

#[test]
fn what_is_none_of_them_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("it has none of the files that make a dictionary: cfg.json and sae_weights"), "{error}");
    assert!(open(folder.path().join("x")).unwrap_err().to_string().contains("there is nothing here"));
}

#[test]
fn configurations_that_ask_for_more_are_refused() {
    let cases = [
        (
            "sparsify/layers.4.mlp",
            "cfg.json",
            "\"topk\"",
            "\"groupmax\"",
            "`activation: groupmax`, which is not supported",
        ),
        (
            "sparsify/layers.4.mlp",
            "cfg.json",
            "\"k\": 4",
            "\"k\": 4, \"signed\": true",
            "`signed`, which is not supported",
        ),
        ("sparsify/layers.4.mlp", "cfg.json", "\"num_latents\": 24", "\"num_latents\": 25", "not [25, 8]"),
        ("dictionary-learning-topk", "config.json", "AutoEncoderTopK", "CrossCoder", "the class `CrossCoder`"),
        ("circuit-tracer", "config.yaml", "transcoder_set", "magic", "`model_kind: magic`, which is not supported"),
        ("circuit-tracer", "config.yaml", "scan:", "transcoders: [\"hf://a/b\"]\nscan:", "download it first"),
        ("circuit-tracer", "config.yaml", "scan:", "transcoders: [\"../a\"]\nscan:", "lies outside the directory"),
        ("circuit-tracer", "config.yaml", "scan: [one, two]", "scan: [one", "it is not YAML"),
        ("llama-scope", "hyperparams.json", "\"in\": 5.5", "\"in\": 0", "should be positive"),
    ];
    for (source, file, old, new, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("copy");
        fs::create_dir(&to).unwrap();
        copy(&goldens().join(source), &to);
        let text = fs::read_to_string(to.join(file)).unwrap();
        assert!(text.contains(old), "{source}");
        fs::write(to.join(file), text.replace(old, new)).unwrap();
        let error = open(&to).unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
}

/// Whole numbers over 8, which sums of products keep exactly in f32: two ways to compute the same must agree.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 33) as f32 / 8. - 2.
    };
    (0..count).map(|_| next()).collect()
}

fn weights(d_in: usize, latents: usize, d_out: usize, seed: u64) -> Weights {
    Weights {
        encoder: Matrix::new(latents, d_in, numbers(latents * d_in, seed)).unwrap(),
        encoder_bias: numbers(latents, seed + 1),
        decoder: Matrix::new(latents, d_out, numbers(latents * d_out, seed + 2)).unwrap(),
        decoder_bias: numbers(d_out, seed + 3),
        threshold: None,
        magnitude: None,
        skip: None,
    }
}

/// An autoencoder of blocks.3.hook_resid_post.
fn dictionary(activation: Activation, subtracted: bool) -> Dictionary {
    let mut weights = weights(6, 10, 6, 5);
    with_activation(&mut weights, activation, 17);
    let config = Config {
        activation,
        apply_b_dec_to_input: subtracted,
        sites: vec!["blocks.3.hook_resid_post".into()],
        ..Config::default()
    };
    Dictionary::new(config, weights).unwrap()
}

fn with_activation(weights: &mut Weights, activation: Activation, seed: u64) {
    let latents = weights.encoder.rows();
    match activation {
        Activation::JumpRelu => {
            weights.threshold = Some(numbers(latents, seed).iter().map(|x| x.abs()).collect());
        }
        Activation::Gated => {
            weights.magnitude = Some(Magnitude { rescale: numbers(latents, seed), bias: numbers(latents, seed + 1) });
        }
        _ => {}
    }
}

const ACTIVATIONS: [Activation; 5] = [
    Activation::Relu,
    Activation::TopK { k: 3, by_decoder_norm: false },
    Activation::TopK { k: 3, by_decoder_norm: true },
    Activation::JumpRelu,
    Activation::Gated,
];

#[test]
fn formats_without_switches_hold_the_same_function() {
    let formats = [Format::GemmaScope, Format::Sparsify, Format::DictionaryLearning];
    let x = Matrix::new(20, 6, numbers(120, 99)).unwrap();
    let mut written = 0;
    for activation in ACTIVATIONS {
        for subtracted in [true, false] {
            let dictionary = dictionary(activation, subtracted);
            let expected = dictionary.reconstruct(&x).unwrap();
            let latents = dictionary.encode(&x).unwrap().latents;
            for format in formats {
                let folder = tempfile::tempdir().unwrap();
                let to = folder.path().join("layers.3");
                let case = format!("{format:?} {activation:?} {subtracted}");
                match save(&to, &dictionary, format) {
                    Ok(lost) => {
                        assert!(
                            lost.iter().any(|lost| lost.contains("site")) == (format != Format::DictionaryLearning)
                        );
                        let again =
                            open(&to).unwrap_or_else(|error| panic!("{case}: {error}")).dictionary(&to).unwrap();
                        close(&again.encode(&x).unwrap().latents.dense(), &latents.dense(), &case);
                        close(again.reconstruct(&x).unwrap().values(), expected.values(), &case);
                        written += 1;
                    }
                    Err(error) => assert!(error.to_string().contains("holds"), "{case}: {error}"),
                }
            }
        }
    }
    // Gemma Scope two of five, sparsify two, dictionary_learning all, each with b_dec subtracted or not.
    assert_eq!(written, 2 * (2 + 2 + 5));
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let mut parts = dictionary(Activation::JumpRelu, false).into_parts();
    parts.0.normalization = Normalization::LayerNorm;
    let normalised = Dictionary::new(parts.0, parts.1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::GemmaScope, Format::DictionaryLearning] {
        let error = save(folder.path(), &normalised, format).unwrap_err().to_string();
        assert!(error.contains("has no place for `normalize_activations: layer_norm`; sae_lens has"), "{error}");
    }
    let error = save(folder.path(), &normalised, Format::CircuitTracer).unwrap_err().to_string();
    assert!(error.contains("circuit_tracer holds transcoders whose output site is known"), "{error}");
    let error = save(folder.path(), &normalised, Format::LlamaScope).unwrap_err().to_string();
    assert!(error.contains("llama_scope is only read"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

prop_compose! {
    /// Any dictionary that there can be.
    fn any_dictionary()(
        activation in prop::sample::select(ACTIVATIONS.to_vec()),
        normalization in prop::sample::select(vec![
            Normalization::None, Normalization::ConstantNormRescale, Normalization::LayerNorm,
        ]),
        sites in prop::collection::vec("[a-z.]{1,12}", 0..3),
        (blocks, latents, other) in (1usize..4, 3usize..9, 1usize..7),
        (subtracted, heads, transcoder, skip) in any::<(bool, bool, bool, bool)>(),
        note in "\\PC{0,9}",
        seed in any::<u64>(),
    ) -> Dictionary {
        let d_in = blocks * sites.len().max(1) * 2;
        let d_out = if transcoder { other * sites.len().max(1) } else { d_in };
        let mut weights = weights(d_in, latents, d_out, seed >> 8);
        with_activation(&mut weights, activation, seed >> 9);
        if transcoder && skip {
            weights.skip = Some(Matrix::new(d_out, d_in, numbers(d_in * d_out, seed >> 10)).unwrap());
        }
        let config = Config {
            activation,
            apply_b_dec_to_input: subtracted && d_in == d_out,
            normalization,
            sites,
            output_site: transcoder.then(|| if heads { String::new() } else { "there".into() }),
            heads_flattened: heads,
            metadata: [("model_name".to_string(), note.into())].into_iter().collect(),
        };
        Dictionary::new(config, weights).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn our_own_format_holds_every_dictionary(dictionary in any_dictionary()) {
        let folder = tempfile::tempdir().unwrap();
        prop_assert_eq!(save(folder.path(), &dictionary, Format::SaeLens).unwrap(), Vec::<String>::new());
        let opened = open(folder.path()).unwrap();
        prop_assert_eq!(&opened.notes, &Vec::<String>::new());
        prop_assert_eq!(opened.dictionary(".").unwrap(), dictionary);
    }
}
