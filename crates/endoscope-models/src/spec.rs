//! The switches of the one decoder. A family translates its config.json to a [`Spec`]; the decoder reads nothing else.

use serde::{Deserialize, Serialize};

/// What a decoder-only transformer is, apart from its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// The longest sequence.
    pub context: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention (query) heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Width of the MLP.
    pub d_mlp: usize,
    /// The normalisation before attention, MLP and unembedding.
    pub norm: Norm,
    /// Added to the variance before its square root.
    pub epsilon: f64,
    /// How positions enter.
    pub positions: Positions,
    /// What attention scores are multiplied by, layer by layer.
    pub attention_scale: AttentionScale,
    /// The MLP's form.
    pub mlp: Mlp,
    /// The MLP's activation function.
    pub activation: Activation,
    /// Which projections have biases.
    pub biases: Biases,
    /// Whether the unembedding is the embedding transposed.
    pub tied: bool,
}

/// A normalisation of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Mean and variance, weight and bias.
    LayerNorm,
    /// Root mean square, weight.
    RmsNorm,
}

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A trained vector per position, added to the embedding.
    Learned,
    /// Rotation of queries and keys, first half of a head paired with the second (Su et al. 2021, arXiv 2104.09864).
    Rotary {
        /// The base of the wavelengths.
        base: f64,
    },
}

/// What attention scores are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionScale {
    /// 1 / sqrt(d_head).
    InverseSqrtHead,
    /// 1 / (sqrt(d_head) * (layer + 1)).
    InverseSqrtHeadByLayer,
    /// 1.
    One,
    /// 1 / (layer + 1).
    ByLayer,
}

/// The MLP's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// down(activation(up(x))).
    Plain,
    /// down(activation(gate(x)) * up(x)).
    Gated,
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x Phi(x), exact.
    GeluErf,
    /// x Phi(x), tanh approximation (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    GeluTanh,
    /// x sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
}

/// Which projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output projection of attention.
    pub attention_out: bool,
    /// The MLP's projections.
    pub mlp: bool,
}

impl Spec {
    /// What layer `layer` multiplies its attention scores by.
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let inverse_sqrt = 1. / (self.d_head as f64).sqrt();
        match self.attention_scale {
            AttentionScale::InverseSqrtHead => inverse_sqrt,
            AttentionScale::InverseSqrtHeadByLayer => inverse_sqrt / (layer + 1) as f64,
            AttentionScale::One => 1.,
            AttentionScale::ByLayer => 1. / (layer + 1) as f64,
        }
    }

    /// Everything that makes no sense in this combination of sizes; empty if it is fine.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, size) in [
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("d_model", self.d_model),
            ("layers", self.layers),
            ("heads", self.heads),
            ("key/value heads", self.kv_heads),
            ("d_head", self.d_head),
            ("d_mlp", self.d_mlp),
        ] {
            // The bound keeps products of two sizes far from overflow, whatever a config says.
            if size == 0 || size > 1 << 28 {
                problems.push(format!("{name} is {size}; it must be between 1 and 2^28"));
            }
        }
        // Each layer costs memory before its weights are looked for.
        if self.layers > 1 << 12 {
            problems.push(format!("layers is {}; at most 4096 are supported", self.layers));
        }
        if self.kv_heads > 0 && !self.heads.is_multiple_of(self.kv_heads) {
            problems.push(format!("{} heads cannot share {} key/value heads evenly", self.heads, self.kv_heads));
        }
        if !(self.epsilon > 0. && self.epsilon < 1.) {
            problems.push(format!("the norm's epsilon is {}; it must lie between 0 and 1", self.epsilon));
        }
        if let Positions::Rotary { base } = self.positions {
            if !(base > 0. && base.is_finite()) {
                problems.push(format!("the rotary base is {base}; it must be positive"));
            }
            if !self.d_head.is_multiple_of(2) {
                problems.push(format!("rotary positions need an even d_head, not {}", self.d_head));
            }
        }
        problems
    }
}
