//! What a training is told: the objective, sizes, schedules, and what is done about dead latents.

use serde::{Deserialize, Serialize};

use crate::config::Normalization;
use crate::error::{Error, Result};

/// The settings of a training, with the defaults of the field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is minimised.
    pub objective: Objective,
    /// How many latents.
    pub latents: usize,
    /// How many updates.
    pub steps: u64,
    /// How many vectors each update sees.
    pub batch: usize,
    /// The learning rate of Adam at its highest.
    pub learning_rate: f64,
    /// Adam's decay of the running mean.
    pub beta1: f64,
    /// Adam's decay of the running mean square.
    pub beta2: f64,
    /// What Adam adds to the root of the mean square.
    pub epsilon: f64,
    /// Updates over which the learning rate rises from nothing.
    pub warmup_steps: u64,
    /// Updates at the end over which it falls to nothing.
    pub decay_steps: u64,
    /// Updates over which the sparsity penalty (L1 or L0) rises from nothing.
    pub sparsity_warmup_steps: u64,
    /// The length that the gradient of all weights together is cut to, if it is longer.
    pub clip: Option<f64>,
    /// Whether decoder rows are kept at length 1, with gradients along them taken out (Bricken et al. 2023).
    pub unit_decoder: bool,
    /// The length of decoder rows at the start; the encoder starts as the decoder transposed.
    pub decoder_start_norm: f64,
    /// Whether the decoder's bias is subtracted from inputs.
    pub apply_b_dec_to_input: bool,
    /// What is done to each input.
    pub normalization: InputScaling,
    /// Where the decoder's bias starts.
    pub bias_start: BiasStart,
    /// A latent that was not active for so many updates is dead.
    pub dead_after_steps: u64,
    /// Every so many updates dead latents start again at inputs that are reconstructed badly (Bricken et al. 2023, appendix).
    pub resample_every: Option<u64>,
    /// A skip connection from input to output, for transcoders (Paulo et al. 2025, arXiv 2501.18823).
    pub skip: bool,
    /// What initial weights and resampling are drawn by.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            objective: Objective::default(),
            latents: 4096,
            steps: 10_000,
            batch: 4096,
            learning_rate: 3e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            warmup_steps: 0,
            decay_steps: 0,
            sparsity_warmup_steps: 0,
            clip: Some(1.),
            unit_decoder: false,
            decoder_start_norm: 0.1,
            apply_b_dec_to_input: true,
            normalization: InputScaling::default(),
            bias_start: BiasStart::default(),
            dead_after_steps: 1000,
            resample_every: None,
            skip: false,
            seed: 0,
        }
    }
}

/// What is minimised, beside the squared error (summed over dimensions, averaged over rows).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// ReLU latents; `l1` times the sum of latents, each times the length of its decoder row.
    Standard {
        /// The coefficient.
        l1: f64,
    },
    /// Gated latents; `l1` on the gates, and the error of what the gates alone reconstruct.
    Gated {
        /// The coefficient.
        l1: f64,
    },
    /// The `k` largest of each row.
    #[serde(rename = "topk")]
    TopK {
        /// How many.
        k: usize,
        /// How much the reconstruction of the error by dead latents counts (Gao et al. 2024, appendix A.2).
        #[serde(default = "one")]
        dead: f64,
        /// Whether latents are compared as if decoder rows had length 1.
        #[serde(default = "yes")]
        by_decoder_norm: bool,
    },
    /// The `k · rows` largest of a batch; trained to be a JumpReLU dictionary of one threshold.
    #[serde(rename = "batchtopk")]
    BatchTopK {
        /// How many a row, on average.
        k: f64,
        /// As for `topk`.
        #[serde(default = "one")]
        dead: f64,
        /// As for `topk`.
        #[serde(default = "yes")]
        by_decoder_norm: bool,
        /// How fast the threshold follows the least latent of a batch.
        #[serde(default = "threshold_rate")]
        threshold_rate: f64,
        /// The first so many latents shall reconstruct by themselves, for each of these, rising (Matryoshka; Bussmann et al. 2025,
        /// arXiv 2503.17547). All latents together need not be named.
        #[serde(default)]
        widths: Vec<usize>,
    },
    /// JumpReLU latents with a threshold each, learned by straight-through estimates.
    #[serde(rename = "jumprelu")]
    JumpRelu {
        /// How much the penalty counts.
        l0: f64,
        /// How sparsity is penalised.
        #[serde(default)]
        penalty: Penalty,
        /// Where thresholds start.
        #[serde(default = "first_threshold")]
        threshold: f64,
        /// How far from its threshold a pre-activation moves it.
        #[serde(default = "bandwidth")]
        bandwidth: f64,
        /// Whether the estimate also moves the encoder, rather than thresholds alone.
        #[serde(default)]
        through_input: bool,
        /// How much it counts by how far dead latents stay below their thresholds (Anthropic, "Circuits updates, January 2025";
        /// 3e-6 there).
        #[serde(default)]
        pre_activation: f64,
    },
}

/// How sparsity of JumpReLU latents is penalised.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Penalty {
    /// The number of active latents (Rajamanoharan et al. 2024, arXiv 2407.14435, equation 9).
    #[default]
    Step,
    /// `2 / target · (number - target)²` (Gemma Scope 2).
    Quadratic {
        /// The number of active latents that is aimed at.
        target: f64,
    },
    /// `tanh(scale · latent · decoder length)`, summed.
    Tanh {
        /// How steep.
        scale: f64,
    },
}

/// What is done to inputs while training. What is one map for all vectors is folded into the weights at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputScaling {
    /// Nothing.
    #[default]
    None,
    /// Scaled so that the mean length is `√d`; folded.
    ExpectedAverageOnlyIn,
    /// The inverse root of the covariance after the mean is subtracted, so that inner products do not depend on linear changes
    /// of the states (Saraswatula and Klindt 2025, arXiv 2511.13981; the corrected product of arXiv 2509.20784); folded.
    CovarianceWhitening,
    /// Each vector to the length `√d`.
    ConstantNormRescale,
    /// Each vector to mean 0 and deviation 1.
    LayerNorm,
}

impl InputScaling {
    /// What the finished dictionary does to each vector.
    pub fn of_dictionary(self) -> Normalization {
        match self {
            Self::None | Self::ExpectedAverageOnlyIn | Self::CovarianceWhitening => Normalization::None,
            Self::ConstantNormRescale => Normalization::ConstantNormRescale,
            Self::LayerNorm => Normalization::LayerNorm,
        }
    }
}

/// Where the decoder's bias starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasStart {
    /// At zero.
    #[default]
    Zero,
    /// At the mean of the first batch's targets.
    Mean,
    /// At their geometric median (Bricken et al. 2023), by Weiszfeld's iteration.
    GeometricMedian,
}

impl Default for Objective {
    fn default() -> Self {
        Self::TopK { k: 32, dead: 1., by_decoder_norm: true }
    }
}

fn one() -> f64 {
    1.
}

fn yes() -> bool {
    true
}

fn threshold_rate() -> f64 {
    0.01
}

fn first_threshold() -> f64 {
    0.01
}

fn bandwidth() -> f64 {
    0.05
}

impl Settings {
    /// Errors if a number is out of range, all of them named.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut need = |holds: bool, what: String| {
            if !holds {
                problems.push(what);
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.;
        let share = |x: f64| (0. ..1.).contains(&x);
        need(self.latents > 0 && self.latents <= u32::MAX as usize, format!("latents = {}", self.latents));
        need(self.batch > 0, "batch = 0".into());
        need(self.steps > 0, "steps = 0".into());
        need(positive(self.learning_rate), format!("learning_rate = {}", self.learning_rate));
        need(share(self.beta1) && share(self.beta2), format!("beta1, beta2 = {}, {}", self.beta1, self.beta2));
        need(positive(self.epsilon), format!("epsilon = {}", self.epsilon));
        need(positive(self.decoder_start_norm), format!("decoder_start_norm = {}", self.decoder_start_norm));
        need(self.clip.is_none_or(positive), format!("clip = {:?}", self.clip));
        need(self.resample_every != Some(0), "resample_every = 0".into());
        let schedule = self.warmup_steps.checked_add(self.decay_steps);
        need(
            schedule.is_some_and(|schedule| schedule <= self.steps),
            format!("warmup_steps + decay_steps is more than steps = {}", self.steps),
        );
        let not_negative = |x: f64| x.is_finite() && x >= 0.;
        match &self.objective {
            Objective::Standard { l1 } | Objective::Gated { l1 } => need(not_negative(*l1), format!("l1 = {l1}")),
            Objective::TopK { k, dead, .. } => {
                need(*k > 0 && *k <= self.latents, format!("k = {k} of {} latents", self.latents));
                need(not_negative(*dead), format!("dead = {dead}"));
            }
            Objective::BatchTopK { k, dead, threshold_rate, widths, .. } => {
                need(positive(*k) && *k <= self.latents as f64, format!("k = {k} of {} latents", self.latents));
                need(not_negative(*dead), format!("dead = {dead}"));
                need((0. ..=1.).contains(threshold_rate), format!("threshold_rate = {threshold_rate}"));
                let rising = widths.windows(2).all(|two| two[0] < two[1]);
                let inside = widths.iter().all(|&width| width > 0 && width <= self.latents);
                need(rising && inside, format!("widths = {widths:?} do not rise within {} latents", self.latents));
            }
            Objective::JumpRelu { l0, penalty, threshold, bandwidth, pre_activation, .. } => {
                need(not_negative(*l0), format!("l0 = {l0}"));
                need(not_negative(*pre_activation), format!("pre_activation = {pre_activation}"));
                need(not_negative(*threshold), format!("threshold = {threshold}"));
                need(positive(*bandwidth), format!("bandwidth = {bandwidth}"));
                match penalty {
                    Penalty::Step => {}
                    Penalty::Quadratic { target } => need(positive(*target), format!("target = {target}")),
                    Penalty::Tanh { scale } => need(positive(*scale), format!("scale = {scale}")),
                }
            }
        }
        let each = matches!(self.normalization, InputScaling::ConstantNormRescale | InputScaling::LayerNorm);
        let revived =
            matches!(&self.objective, Objective::TopK { dead, .. } | Objective::BatchTopK { dead, .. } if *dead > 0.);
        need(
            !(each && revived),
            "dead latents cannot reconstruct an error in other units: set dead = 0, or another normalization".into(),
        );
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Training(format!("not possible: {}", problems.join("; ")))),
        }
    }

    /// The learning rate of update `step`, from 0: a linear rise, a constant, a linear fall to zero.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let rise = match step < self.warmup_steps {
            true => (step + 1) as f64 / self.warmup_steps as f64,
            false => 1.,
        };
        let left = self.steps.saturating_sub(step);
        let fall = match left < self.decay_steps {
            true => left as f64 / self.decay_steps as f64,
            false => 1.,
        };
        self.learning_rate * rise * fall
    }

    /// The share of the sparsity penalty at update `step`, from 0.
    pub fn sparsity_at(&self, step: u64) -> f64 {
        match step < self.sparsity_warmup_steps {
            true => step as f64 / self.sparsity_warmup_steps as f64,
            false => 1.,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named() {
        let settings = Settings {
            batch: 0,
            learning_rate: f64::NAN,
            objective: Objective::TopK { k: 9, dead: 1., by_decoder_norm: true },
            latents: 8,
            steps: 10,
            warmup_steps: 6,
            decay_steps: 5,
            normalization: InputScaling::LayerNorm,
            ..Settings::default()
        };
        let error = settings.check().unwrap_err().to_string();
        for part in ["batch = 0", "learning_rate = NaN", "k = 9 of 8", "warmup_steps + decay_steps", "dead = 0"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        Settings::default().check().unwrap();
    }

    #[test]
    fn rates_rise_stay_and_fall() {
        let settings =
            Settings { learning_rate: 1., steps: 10, warmup_steps: 2, decay_steps: 4, ..Settings::default() };
        let rates: Vec<f64> = (0..10).map(|step| settings.learning_rate_at(step)).collect();
        assert_eq!(rates, [0.5, 1., 1., 1., 1., 1., 1., 0.75, 0.5, 0.25]);
        let settings = Settings { sparsity_warmup_steps: 4, ..settings };
        assert_eq!([0, 2, 4, 9].map(|step| settings.sparsity_at(step)), [0., 0.5, 1., 1.]);
    }

    #[test]
    fn settings_survive_json() {
        let text = r#"{"objective": {"batchtopk": {"k": 8, "widths": [4, 16]}}, "latents": 64}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        assert!(matches!(&settings.objective, Objective::BatchTopK { dead, .. } if *dead == 1.));
        let again = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
        assert_eq!(settings, again);
        assert!(serde_json::from_str::<Settings>(r#"{"latent": 64}"#).is_err());
    }
}
