//! The switches of the one decoder. A family translates its config.json to a [`Spec`]; the decoder reads nothing else.

use serde::{Deserialize, Serialize};

use crate::rotary::Rotary;

/// What a decoder-only transformer is, apart from its weights.
///
/// The default has every switch in its plain position (pre-norm, sequential, no positions …) and no sizes.
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
    /// Where it stands in a layer.
    pub placement: Placement,
    /// Added to the variance before its square root.
    pub epsilon: f64,
    /// How attention and MLP of a layer follow each other.
    pub order: Order,
    /// How positions enter.
    pub positions: Positions,
    /// What attention scores are multiplied by, layer by layer.
    pub attention_scale: AttentionScale,
    /// Scores become `cap tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// How many keys, itself included, a query sees; layer by layer, empty if no layer has a window.
    pub windows: Vec<Option<usize>>,
    /// What normalises queries and keys, before rotary.
    pub qk_norm: Option<QkNorm>,
    /// Queries, keys and values are clamped to plus and minus this.
    pub clip_qkv: Option<f64>,
    /// The MLP's form.
    pub mlp: Mlp,
    /// The MLP's activation function.
    pub activation: Activation,
    /// The experts that take the place of the MLP.
    pub experts: Option<Experts>,
    /// Which projections have biases.
    pub biases: Biases,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What attention and MLP write is multiplied by.
    pub residual_scale: f64,
    /// What logits are multiplied by.
    pub logit_scale: f64,
    /// Logits become `cap tanh(logit / cap)`.
    pub logit_softcap: Option<f64>,
    /// Whether the unembedding is the embedding transposed.
    pub tied: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            vocabulary: 0,
            context: 0,
            d_model: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            d_head: 0,
            d_mlp: 0,
            norm: Norm::LayerNorm,
            placement: Placement::Pre,
            epsilon: 1e-5,
            order: Order::Sequential,
            positions: Positions::None,
            attention_scale: AttentionScale::InverseSqrtHead,
            attention_softcap: None,
            windows: Vec::new(),
            qk_norm: None,
            clip_qkv: None,
            mlp: Mlp::Plain,
            activation: Activation::GeluTanh,
            experts: None,
            biases: Biases::default(),
            embedding_scale: 1.,
            residual_scale: 1.,
            logit_scale: 1.,
            logit_softcap: None,
            tied: false,
        }
    }
}

/// A normalisation of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Mean and variance, weight and perhaps bias.
    LayerNorm,
    /// Mean and variance, without weight and bias.
    PlainLayerNorm,
    /// Root mean square, weight.
    RmsNorm,
}

/// Where a layer's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Before attention and before the MLP.
    Pre,
    /// Before each, and on what each writes.
    Sandwich,
    /// Only on what each writes.
    Post,
}

impl Placement {
    /// Whether attention and MLP read a normalised stream.
    pub fn before(self) -> bool {
        self != Self::Post
    }

    /// Whether what they write is normalised.
    pub fn after(self) -> bool {
        self != Self::Pre
    }
}

/// How attention and MLP of a layer follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The MLP reads what attention has written.
    Sequential,
    /// Both read the start of the layer, each through a norm of its own.
    Parallel,
    /// Both read the same norm of the start of the layer.
    ParallelSharedNorm,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A trained vector per position, added to the embedding.
    Learned,
    /// Rotation of queries and keys (Su et al. 2021, arXiv 2104.09864).
    Rotary {
        /// The rotations that occur.
        kinds: Vec<Rotary>,
        /// Which of them each layer has, if any; empty if all have the first.
        layers: Vec<Option<usize>>,
    },
    /// A bias of the scores that grows with the key's position, by head (Press et al. 2021, arXiv 2108.12409), as Falcon
    /// has it: `slope * position` rounded to bf16, and scaled with the scores.
    Alibi,
    /// Not at all.
    None,
}

impl Positions {
    /// The same rotation in every layer.
    pub fn rotary(kind: Rotary) -> Self {
        Self::Rotary { kinds: vec![kind], layers: Vec::new() }
    }
}

/// What attention scores are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// This.
    Value(f64),
}

/// What normalises queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// The kind of norm.
    pub norm: Norm,
    /// What one row of it is.
    pub over: QkNormOver,
}

/// What one row of a norm of queries and keys is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormOver {
    /// Each head, with one weight for all heads.
    Head,
    /// Each head, with weights of its own.
    OwnHead,
    /// All heads together.
    AllHeads,
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

/// Experts in the place of an MLP: the most probable few read each position, and what they write is added up by weight
/// (Shazeer et al. 2017, arXiv 1701.06538; probabilities as in Mixtral, arXiv 2401.04088).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many read a position.
    pub active: usize,
    /// Width of each.
    pub d_mlp: usize,
    /// What their weights are.
    pub weights: ExpertWeights,
    /// Layers with an MLP instead, in ascending order.
    pub dense_layers: Vec<usize>,
}

/// By what experts' writes are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertWeights {
    /// Their probabilities among all experts.
    Probabilities,
    /// These divided by their sum over the chosen.
    Renormalised,
}

/// Which projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
            AttentionScale::Value(value) => value,
        }
    }

    /// How many keys a query of this layer sees; all before it if none.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }

    /// Which of the rotations this layer has.
    pub fn rotation(&self, layer: usize) -> Option<usize> {
        match &self.positions {
            Positions::Rotary { layers, .. } => layers.get(layer).copied().unwrap_or(Some(0)),
            _ => None,
        }
    }

    /// The experts of this layer, if it has them.
    pub fn experts(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.dense_layers.binary_search(&layer).is_err())
    }

    /// The widest MLP, or all experts that read a position.
    pub fn widest_mlp(&self) -> usize {
        self.experts.as_ref().map_or(0, |experts| experts.active * experts.d_mlp).max(self.d_mlp)
    }

    /// Everything that makes no sense in this combination of sizes; empty if it is fine.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut sizes = vec![
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("d_model", self.d_model),
            ("layers", self.layers),
            ("heads", self.heads),
            ("key/value heads", self.kv_heads),
            ("d_head", self.d_head),
            ("d_mlp", self.d_mlp),
        ];
        if let Some(experts) = &self.experts {
            sizes.extend([("experts", experts.count), ("active experts", experts.active)]);
            sizes.push(("an expert's d_mlp", experts.d_mlp));
            if experts.active > experts.count {
                problems.push(format!("{} of {} experts cannot be active", experts.active, experts.count));
            }
            // Each costs memory before its weights are looked for.
            if experts.count > 1 << 12 {
                problems.push(format!("experts is {}; at most 4096 are supported", experts.count));
            }
        }
        for (name, size) in sizes {
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
        for (name, value) in [
            ("the attention scores' factor", self.attention_scale(0)),
            ("the embedding's factor", self.embedding_scale),
            ("the residual factor", self.residual_scale),
            ("the logits' factor", self.logit_scale),
            ("the scores' soft-cap", self.attention_softcap.unwrap_or(1.)),
            ("the logits' soft-cap", self.logit_softcap.unwrap_or(1.)),
            ("the bound of queries, keys and values", self.clip_qkv.unwrap_or(1.)),
        ] {
            if !(value > 0. && (value as f32).is_finite()) {
                problems.push(format!("{name} is {value}; it must be positive"));
            }
        }
        if self.windows.contains(&Some(0)) {
            problems.push("a window of 0 keys leaves a query nothing to attend to".into());
        }
        if let Positions::Rotary { kinds, layers } = &self.positions {
            kinds.iter().for_each(|kind| problems.extend(kind.problems(self.d_head)));
            if layers.iter().flatten().any(|&kind| kind >= kinds.len()) {
                problems.push("a layer has a rotation that is not among the model's".into());
            }
        }
        problems
    }
}
