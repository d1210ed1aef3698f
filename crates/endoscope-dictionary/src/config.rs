//! What kind of dictionary it is: how latents come from pre-activations, what is done to inputs, which sites it reads.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a dictionary is, its weights aside.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What makes latents of pre-activations.
    pub activation: Activation,
    /// Whether the decoder's bias is subtracted from the input first.
    pub apply_b_dec_to_input: bool,
    /// What is done to each input vector first, and undone last.
    pub normalization: Normalization,
    /// The sites it reads, by name. Several are read one beside the other: a crosscoder (Lindsey et al. 2024,
    /// transformer-circuits.pub/2024/crosscoders), whose encoder and decoder are blocks of equal width. None where a file does not say.
    pub sites: Vec<String>,
    /// The site it writes, where that is another: a transcoder (Dunefsky et al. 2024, arXiv 2406.11944). Empty where a file does
    /// not say which.
    pub output_site: Option<String>,
    /// Whether the heads of its site (`hook_z`) are read one beside the other.
    pub heads_flattened: bool,
    /// Everything else that is known of it: model, data, training. Kept as it was read.
    pub metadata: Map<String, Value>,
}

/// What makes latents of pre-activations `a = x W_enc + b_enc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(a, 0)` (Bricken et al. 2023, Cunningham et al. 2023, arXiv 2309.08600).
    #[default]
    Relu,
    /// The `k` largest, where they are positive (Gao et al. 2024, arXiv 2406.04093, equation 3).
    TopK {
        /// How many.
        k: usize,
        /// Whether they are compared, and given, as if decoder rows had length 1.
        by_decoder_norm: bool,
    },
    /// `a` where it is above the latent's threshold (Rajamanoharan et al. 2024, arXiv 2407.14435, equation 2). Also what a
    /// BatchTopK dictionary is once it is trained (Bussmann et al. 2024, arXiv 2412.06410, section 3).
    JumpRelu,
    /// A gate and a magnitude that share their directions (Rajamanoharan et al. 2024, arXiv 2404.16014, equation 5).
    Gated,
}

impl Activation {
    /// Its name in files of the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "standard",
            Self::TopK { .. } => "topk",
            Self::JumpRelu => "jumprelu",
            Self::Gated => "gated",
        }
    }
}

/// What is done to each input vector before it is encoded, and undone after it is decoded. Names and meanings are those of SAELens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Nothing.
    #[default]
    None,
    /// Scaled to the length `√d`.
    ConstantNormRescale,
    /// Its mean subtracted, then divided by its standard deviation (of `d - 1` degrees of freedom) and 1e-5.
    LayerNorm,
    /// One factor for all vectors, which is folded into the weights when training ends. A file that still names it is read as
    /// it is: nothing is done to inputs.
    ExpectedAverageOnlyIn,
}

impl Normalization {
    /// Its name in files of the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ConstantNormRescale => "constant_norm_rescale",
            Self::LayerNorm => "layer_norm",
            Self::ExpectedAverageOnlyIn => "expected_average_only_in",
        }
    }
}
