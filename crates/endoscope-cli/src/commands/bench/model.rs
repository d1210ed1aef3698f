//! The model that is measured: a directory's, or random weights made in memory.

use std::path::Path;

use anyhow::Result;
use candle_core::Tensor;
use endoscope_models::{Decoder, Depth, Family, Inventory, Model, Precision, Spec, WeightSource};
use endoscope_train::{ModelRecipe, Parameters, Shape, ShortKeys};

use crate::input;

/// The shape of GPT-2 small (Radford et al. 2019).
pub const GPT2_SMALL: ModelRecipe = ModelRecipe { family: Family::Gpt2, context: 1024, shape: Shape::Short(SHORT) };
const SHORT: ShortKeys = ShortKeys {
    d_model: 768,
    layers: 12,
    heads: 12,
    kv_heads: None,
    d_head: None,
    d_mlp: 3072,
    activation: None,
    tied: None,
    attention_bias: None,
    mlp_bias: None,
    rotary_base: None,
    positions: None,
};
const GPT2_VOCABULARY: usize = 50257;
/// Deviation of GPT-2's initial matrices.
pub const INIT_STD: f64 = 0.02;
/// Any seed does.
pub const SEED: u64 = 1;

/// The model in `directory`, or a random one.
pub fn open(directory: Option<&Path>, depth: Depth) -> Result<Model> {
    match directory {
        Some(directory) => input::open(directory, depth),
        None => random(GPT2_SMALL.family, GPT2_SMALL.spec(GPT2_VOCABULARY)?, depth),
    }
}

/// What the tables call it.
pub fn name(directory: Option<&Path>) -> String {
    match directory {
        Some(directory) => directory.display().to_string(),
        None => "random weights, GPT-2 small's shape".to_string(),
    }
}

fn random(family: Family, spec: Spec, depth: Depth) -> Result<Model> {
    let precision = match depth {
        Depth::Numbers(precision) => precision,
        Depth::Stored | Depth::Headers => Precision::F32,
    };
    let mut source = Frozen { initial: Parameters::new(family, &spec, SEED, INIT_STD), precision };
    let weights = family.weights(&spec, &mut source)?;
    let parameters = source.initial.variables.values().map(|variable| variable.elem_count() as u64).sum();
    let decoder = Decoder::new(spec, weights)?;
    Ok(Model {
        directory: "random".into(),
        revision: None,
        family,
        decoder,
        tokenizer: None,
        tokenizer_problem: None,
        end_tokens: Vec::new(),
        parameters,
        files: Vec::new(),
        inventory: Inventory::default(),
    })
}

/// Initial weights that are no variables, so that a run keeps nothing for a backward pass.
struct Frozen {
    initial: Parameters,
    precision: Precision,
}

impl WeightSource for Frozen {
    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn has(&self, name: &str) -> bool {
        self.initial.has(name)
    }

    fn get(&mut self, name: &str, shape: &[usize]) -> endoscope_models::Result<Tensor> {
        Ok(self.initial.get(name, shape)?.detach())
    }
}
