//! Trainable weights: a [`WeightSource`] that makes a variable of every tensor that a family asks for.

use std::collections::{BTreeMap, HashMap};
use std::f64::consts::TAU;

use candle_core::{Device, Tensor, Var};
use endoscope_models::{Family, Spec, WeightSource};
use rand::RngExt;

use crate::batches::generator;

/// The variables of a model by their names in the file.
///
/// A view of a variable (a slice, a transpose) shares its storage, and an optimiser's step writes in place. What is computed
/// from variables does not see a step: a norm's weight that the file holds less 1, a matrix put together of parts. So weights
/// are taken anew ([`endoscope_models::Family::weights`]) before each forward pass that follows a step.
#[derive(Debug)]
pub struct Parameters {
    /// Name in the file -> variable.
    pub variables: BTreeMap<String, Var>,
    seed: u64,
    init_std: f64,
    layers: usize,
    norm: f32,
}

impl Parameters {
    /// Parameters of `spec` to be initialised from `seed` as they are asked for, in every family as GPT-2's were (Radford et
    /// al. 2019, section 2.3): matrices normal with deviation `init_std`, those that write to the residual stream scaled by
    /// 1 / sqrt(2 layers), norms at what changes nothing, biases 0. What a tensor starts from depends on seed and name, not
    /// on the order.
    pub fn new(family: Family, spec: &Spec, seed: u64, init_std: f64) -> Self {
        Self { variables: BTreeMap::new(), seed, init_std, layers: spec.layers, norm: family.neutral_norm(spec) }
    }

    fn initial(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        if let [_] = shape {
            return vec![if name.ends_with(".weight") { self.norm } else { 0. }; count];
        }
        let scale = if writes(name) { 1. / (2. * self.layers as f64).sqrt() } else { 1. };
        normal(self.seed, stream(name), count).map(|x| (x * self.init_std * scale) as f32).collect()
    }

    /// The current numbers by name, for writing.
    pub fn tensors(&self) -> candle_core::Result<HashMap<String, Tensor>> {
        self.variables.iter().map(|(name, variable)| Ok((name.clone(), variable.as_detached_tensor()))).collect()
    }
}

impl WeightSource for Parameters {
    fn has(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }

    fn get(&mut self, name: &str, shape: &[usize]) -> endoscope_models::Result<Tensor> {
        if let Some(variable) = self.variables.get(name) {
            return Ok(variable.as_tensor().clone());
        }
        let variable = Var::from_vec(self.initial(name, shape), shape, &Device::Cpu)?;
        let tensor = variable.as_tensor().clone();
        self.variables.insert(name.to_string(), variable);
        Ok(tensor)
    }
}

/// Whether a matrix writes to the residual stream: attention's last one, an MLP's, an expert's.
fn writes(name: &str) -> bool {
    ["c_proj", "o_proj", "out_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2"]
        .iter()
        .any(|own| name.strip_suffix(".weight").is_some_and(|name| name.rsplit('.').next() == Some(*own)))
}

/// FNV-1a: a stream of random numbers for each name.
fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Standard normal numbers (Box and Muller 1958).
fn normal(seed: u64, stream: u64, count: usize) -> impl Iterator<Item = f64> {
    let mut random = generator(seed, stream);
    let pairs = std::iter::repeat_with(move || {
        let (radius, angle) = (1. - random.random::<f64>(), random.random::<f64>());
        let radius = (-2. * radius.ln()).sqrt();
        [radius * (TAU * angle).cos(), radius * (TAU * angle).sin()]
    });
    pairs.flatten().take(count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use endoscope_models::Positions;
    use endoscope_models::config::Config;

    use super::*;

    fn parameters(seed: u64, layers: usize) -> Parameters {
        Parameters::new(Family::Gpt2, &Spec { layers, ..Spec::default() }, seed, 0.02)
    }

    #[test]
    fn a_tensor_starts_from_its_seed_and_name_whatever_the_order() {
        let (mut first, mut second) = (parameters(7, 2), parameters(7, 2));
        for name in ["a.weight", "b.weight"] {
            first.get(name, &[3, 5]).unwrap();
        }
        for name in ["b.weight", "a.weight"] {
            second.get(name, &[3, 5]).unwrap();
        }
        let numbers = |p: &Parameters, name: &str| p.variables[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(&first, "a.weight"), numbers(&second, "a.weight"));
        assert_eq!(numbers(&first, "b.weight"), numbers(&second, "b.weight"));
        assert_ne!(numbers(&first, "a.weight"), numbers(&first, "b.weight"));
        let mut other = parameters(8, 2);
        other.get("a.weight", &[3, 5]).unwrap();
        assert_ne!(numbers(&first, "a.weight"), numbers(&other, "a.weight"));
    }

    #[test]
    fn tensors_start_with_the_deviation_of_their_kind() {
        let mut parameters = parameters(1, 8);
        for (name, shape, mean, deviation) in [
            ("wte.weight", vec![100, 200], 0., 0.02),
            ("h.0.attn.c_proj.weight", vec![100, 200], 0., 0.005),
            ("h.0.mlp.down_proj.weight", vec![100, 200], 0., 0.005),
            ("h.0.ln_1.weight", vec![50], 1., 0.),
            ("h.0.attn.c_proj.bias", vec![50], 0., 0.),
        ] {
            let numbers = parameters.get(name, &shape).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let count = numbers.len() as f64;
            let found_mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            let variance = numbers.iter().map(|&x| (f64::from(x) - found_mean).powi(2)).sum::<f64>() / count;
            assert!((found_mean - mean).abs() < 5e-4, "{name}: mean {found_mean}");
            assert!((variance.sqrt() - deviation).abs() < 3e-4, "{name}: deviation {}", variance.sqrt());
        }
    }

    /// A tensor whose kind is known by its name is one in every family: a new family's names must be among those here.
    #[test]
    fn the_kinds_of_all_tensors_are_known_in_every_family() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens");
        let mut families = BTreeSet::new();
        for folder in std::fs::read_dir(goldens).unwrap() {
            let path = folder.unwrap().path().join("config.json");
            if !path.is_file() {
                continue;
            }
            let config = Config::read(&path).unwrap();
            let family = Family::of(&config).unwrap();
            let spec = family.spec(config).unwrap();
            families.insert(family.model_type());
            let mut parameters = Parameters::new(family, &spec, 1, 0.02);
            let weights = family.weights(&spec, &mut parameters).unwrap();
            let matrices = || parameters.variables.iter().filter(|(_, variable)| variable.rank() == 2);
            let outputs = |layer| 1 + spec.experts(layer).map_or(1, |experts| experts.count);
            let expected: usize = (0..spec.layers).map(outputs).sum();
            assert_eq!(matrices().filter(|(name, _)| writes(name)).count(), expected, "{}", path.display());
            let expected = 1 + usize::from(spec.positions == Positions::Learned);
            let kept = matrices().filter(|(name, variable)| !crate::adamw::decays(name, variable)).count();
            assert_eq!(kept, expected, "{}", path.display());
            for norm in weights.layers.iter().flat_map(|layer| [&layer.ln1, &layer.ln2_post, &layer.attention.q_norm]) {
                let ones = norm
                    .iter()
                    .all(|norm| norm.weight.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|&x| x == 1.));
                assert!(ones, "{}: a norm starts with a weight that changes something", path.display());
            }
        }
        assert_eq!(families.len(), Family::ALL.len());
    }

    #[test]
    fn views_see_what_is_written_in_place() {
        let variable = Var::from_vec(vec![1f32, 2., 3., 4.], (2, 2), &Device::Cpu).unwrap();
        let (slice, transposed) = (variable.narrow(1, 1, 1).unwrap(), variable.t().unwrap());
        variable.set(&Tensor::new(&[[5f32, 6.], [7., 8.]], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(slice.to_vec2::<f32>().unwrap(), [[6.], [8.]]);
        assert_eq!(transposed.to_vec2::<f32>().unwrap(), [[5., 7.], [6., 8.]]);
    }
}
