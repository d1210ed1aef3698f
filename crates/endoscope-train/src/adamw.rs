//! AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), with a state that can be kept and restored bit for bit.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Storage, Tensor, Var};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::recipe::TrainingRecipe;

/// How many weights one task moves.
const TASK: usize = 1 << 14;

/// The optimiser and its state.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Steps made so far.
    pub step: u64,
    /// Name of the weight -> its running moments.
    pub moments: BTreeMap<String, Moments>,
}

/// The running moments of one weight's gradient, flat in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// The mean.
    pub first: Vec<f32>,
    /// The mean square.
    pub second: Vec<f32>,
}

impl AdamW {
    /// The state before the first step.
    pub fn new(variables: &BTreeMap<String, Var>) -> Self {
        let zeros = |variable: &Var| vec![0.; variable.elem_count()];
        let moments = variables
            .iter()
            .map(|(name, variable)| (name.clone(), Moments { first: zeros(variable), second: zeros(variable) }))
            .collect();
        Self { step: 0, moments }
    }

    /// One step down the gradients, each multiplied by `gradient_scale`.
    pub fn update(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &GradStore,
        gradient_scale: f64,
        learning_rate: f64,
        training: &TrainingRecipe,
    ) -> Result<()> {
        let &TrainingRecipe { beta1, beta2, epsilon, weight_decay, .. } = training;
        self.step += 1;
        let steps = self.step as f64;
        let (bias1, bias2) = (1. - beta1.powf(steps), 1. - beta2.powf(steps));
        for (name, variable) in variables {
            let mut weights: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            let decay = if decays(name, variable) { weight_decay } else { 0. };
            let Some(Moments { first, second }) = self.moments.get_mut(name) else {
                return Err(Error::NoGradient { name: name.clone() });
            };
            let move_one = |(((w, &g), m), v): (((&mut f32, &f32), &mut f32), &mut f32)| {
                let g = f64::from(g) * gradient_scale;
                *m = (beta1 * f64::from(*m) + (1. - beta1) * g) as f32;
                *v = (beta2 * f64::from(*v) + (1. - beta2) * g * g) as f32;
                let adam = (f64::from(*m) / bias1) / ((f64::from(*v) / bias2).sqrt() + epsilon);
                *w = (f64::from(*w) - learning_rate * (adam + decay * f64::from(*w))) as f32;
            };
            with_flat(gradient_of(gradients, name, variable)?, |gradient| {
                let weights = weights.par_chunks_mut(TASK).zip(gradient.par_chunks(TASK));
                let moments = first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK));
                weights.zip(moments).for_each(|((w, g), (m, v))| w.iter_mut().zip(g).zip(m).zip(v).for_each(move_one));
            })?;
            variable.set(&Tensor::from_vec(weights, variable.shape(), variable.device())?)?;
        }
        Ok(())
    }
}

/// Matrices decay; norms, biases and embeddings do not.
pub(crate) fn decays(name: &str, variable: &Var) -> bool {
    let embedding = ["wte", "wpe", "embed_tokens", "embed_positions", "embed_in", "word_embeddings"]
        .iter()
        .any(|own| name.strip_suffix(".weight").is_some_and(|name| name.ends_with(own)));
    variable.rank() == 2 && !embedding
}

/// The length of all gradients taken as one vector.
pub(crate) fn gradient_norm(variables: &BTreeMap<String, Var>, gradients: &GradStore) -> Result<f64> {
    let mut squares = 0.;
    for (name, variable) in variables {
        let square = |gradient: &[f32]| gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        squares += with_flat(gradient_of(gradients, name, variable)?, square)?;
    }
    Ok(squares.sqrt())
}

fn gradient_of<'a>(gradients: &'a GradStore, name: &str, variable: &Var) -> Result<&'a Tensor> {
    gradients.get(variable.as_tensor()).ok_or_else(|| Error::NoGradient { name: name.to_string() })
}

/// Calls `f` with the values in row-major order, which are copied only where they do not lie so.
fn with_flat<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> candle_core::Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(f(&storage.as_slice::<f32>()?[start..end])),
        _ => candle_core::bail!("only tensors on the CPU are trained"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// torch.optim.AdamW on w = 1 with gradients 0.5, -0.2, 0.1: lr 0.1, betas (0.9, 0.99), eps 1e-8, decay 0.1.
    #[test]
    fn follows_torch() {
        let training =
            TrainingRecipe { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1, ..TrainingRecipe::default() };
        let weight = Var::new(&[[1f32]], &Device::Cpu).unwrap();
        let bias = Var::new(&[1f32], &Device::Cpu).unwrap();
        let variables =
            BTreeMap::from([("w.weight".to_string(), weight.clone()), ("w.bias".to_string(), bias.clone())]);
        let mut optimizer = AdamW::new(&variables);
        for (gradient, (decayed, plain)) in [0.5, -0.2, 0.1].into_iter().zip(TORCH) {
            let loss = ((weight.sum_all().unwrap() + bias.sum_all().unwrap()).unwrap() * gradient).unwrap();
            optimizer.update(&variables, &loss.backward().unwrap(), 1., 0.1, &training).unwrap();
            let (w, b) = (weight.to_vec2::<f32>().unwrap()[0][0], bias.to_vec1::<f32>().unwrap()[0]);
            assert!((w - decayed).abs() < 2e-6 && (b - plain).abs() < 2e-6, "{w} {b}, not {decayed} {plain}");
        }
    }

    /// The decayed and the plain weight after each step, printed by torch 2.8.
    const TORCH: [(f32, f32); 3] = [(0.89, 0.9), (0.8464826, 0.8653826), (0.7999406, 0.8273054)];

    #[test]
    fn embeddings_norms_and_biases_do_not_decay() {
        let matrix = Var::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let vector = Var::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        for (name, variable, expected) in [
            ("transformer.wte.weight", &matrix, false),
            ("transformer.wpe.weight", &matrix, false),
            ("model.embed_tokens.weight", &matrix, false),
            ("lm_head.weight", &matrix, true),
            ("transformer.h.0.attn.c_attn.weight", &matrix, true),
            ("transformer.h.0.attn.c_attn.bias", &vector, false),
            ("model.norm.weight", &vector, false),
        ] {
            assert_eq!(decays(name, variable), expected, "{name}");
        }
    }
}
