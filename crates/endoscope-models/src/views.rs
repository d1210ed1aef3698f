//! Weights under TransformerLens's names, shapes and orientation: every matrix multiplies from the right (`x W`).
//!
//! Letters in shapes: v vocabulary, d d_model, h head, g key/value head, e d_head, m d_mlp. Keys and values keep their own
//! number of heads; [`for_each_query_head`] repeats them as TransformerLens's `W_K` and `W_V` do.

use std::fmt;

use candle_core::{DType, Device, Tensor};

use crate::decoder::{Decoder, DenseWeights, LayerWeights, MlpWeights};
use crate::error::{Error, Result};
use crate::ops::Linear;
use crate::spec::{Mlp, Spec};

macro_rules! views {
    ($($(#[$doc:meta])* $variant:ident $name:literal $of:ident,)*) => {
        /// A kind of weight. Layers come first when all are asked for: `W_Q` is `[layer, h, d, e]`.
        ///
        /// A bias that the model lacks is zero, as in TransformerLens. Experts come before the axes of an MLP: `W_in` of
        /// a layer is `[expert, d, m]`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WeightView {
            $($(#[$doc])* $variant,)*
        }

        impl WeightView {
            /// All of them, in the order of the mathematics.
            pub const ALL: &[WeightView] = &[$(Self::$variant),*];

            /// TransformerLens's name: `W_Q`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The part of TransformerLens's model that has it.
            fn part(self) -> Part {
                match self {
                    $(Self::$variant => Part::$of,)*
                }
            }
        }
    };
}

views! {
    /// The embedding `[v, d]`, before any embedding scale.
    Embedding "W_E" Embed,
    /// Learned positions `[context, d]`.
    Positions "W_pos" PosEmbed,
    /// Queries `[h, d, e]`.
    Query "W_Q" Attention,
    /// Their bias `[h, e]`.
    QueryBias "b_Q" Attention,
    /// Keys `[g, d, e]`.
    Key "W_K" Attention,
    /// Their bias `[g, e]`.
    KeyBias "b_K" Attention,
    /// Values `[g, d, e]`.
    Value "W_V" Attention,
    /// Their bias `[g, e]`.
    ValueBias "b_V" Attention,
    /// What heads write `[h, e, d]`.
    Output "W_O" Attention,
    /// The bias of their sum `[d]`.
    OutputBias "b_O" Attention,
    /// The router of experts `[d, expert]`.
    Router "W_router" Mlp,
    /// What the activation function is applied to in a gated MLP `[d, m]`.
    Gate "W_gate" Mlp,
    /// Its bias `[m]`.
    GateBias "b_gate" Mlp,
    /// Into the neurons `[d, m]`; of a gated MLP, the factor without activation function.
    In "W_in" Mlp,
    /// Its bias `[m]`.
    InBias "b_in" Mlp,
    /// Out of the neurons `[m, d]`.
    Out "W_out" Mlp,
    /// Its bias `[d]`.
    OutBias "b_out" Mlp,
    /// The unembedding `[d, v]`.
    Unembedding "W_U" Unembed,
    /// Its bias `[v]`.
    UnembeddingBias "b_U" Unembed,
}

/// A part of TransformerLens's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Embed,
    PosEmbed,
    Attention,
    Mlp,
    Unembed,
}

impl Part {
    fn in_layers(self) -> bool {
        matches!(self, Self::Attention | Self::Mlp)
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::PosEmbed => "pos_embed",
            Self::Attention => "attn",
            Self::Mlp => "mlp",
            Self::Unembed => "unembed",
        }
    }
}

impl fmt::Display for WeightView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind of weight in every layer, or in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightName {
    /// The kind.
    pub view: WeightView,
    /// The layer, if it is of one.
    pub layer: Option<usize>,
}

impl WeightView {
    /// Reads `W_Q`.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|view| view.name() == name).ok_or_else(|| {
            let lower = name.to_lowercase();
            let nearest = Self::ALL.iter().min_by_key(|view| strsim::levenshtein(&view.name().to_lowercase(), &lower));
            let nearest = nearest.map_or("W_E", |view| view.name());
            let all: Vec<&str> = Self::ALL.iter().map(|view| view.name()).collect();
            let reason = format!("did you mean `{nearest}`? There are {}", all.join(", "));
            Error::View { view: name.to_string(), layer: None, reason }
        })
    }

    /// Whether each layer has one.
    pub fn in_layers(self) -> bool {
        self.part().in_layers()
    }

    /// Whether a model has it (in some layer), biases that it lacks included.
    pub fn is_in(self, spec: &Spec) -> bool {
        match self {
            Self::Positions => spec.positions == crate::spec::Positions::Learned,
            Self::Router => spec.experts.is_some(),
            Self::Gate | Self::GateBias => spec.mlp == Mlp::Gated,
            _ => true,
        }
    }
}

impl WeightName {
    /// Reads `W_Q` (every layer), `W_Q.3`, or TransformerLens's `blocks.3.attn.W_Q` and `embed.W_E`.
    pub fn parse(name: &str) -> Result<Self> {
        let unknown = |reason: &str| Error::View { view: name.to_string(), layer: None, reason: reason.to_string() };
        let number = |text: &str| text.parse().map_err(|_| unknown(&format!("`{text}` is not the number of a layer")));
        let parts: Vec<&str> = name.split('.').collect();
        let (layer, part, view) = match parts.as_slice() {
            [view] => (None, None, *view),
            ["blocks", layer, part, view] => (Some(number(layer)?), Some(*part), *view),
            [part, view] if view.contains('_') => (None, Some(*part), *view),
            [view, layer] => (Some(number(layer)?), None, *view),
            _ => return Err(unknown("write it like W_Q, W_Q.3 or blocks.3.attn.W_Q")),
        };
        let view = WeightView::parse(view)?;
        if part.is_some_and(|part| part != view.part().prefix())
            || (part.is_some() && view.in_layers() != layer.is_some())
        {
            return Err(unknown(&format!("TransformerLens calls it `{}`", full_name(view))));
        }
        match layer {
            Some(_) if !view.in_layers() => Err(unknown("it belongs to no layer")),
            _ => Ok(Self { view, layer }),
        }
    }
}

fn full_name(view: WeightView) -> String {
    let block = if view.in_layers() { "blocks.LAYER." } else { "" };
    format!("{block}{}.{}", view.part().prefix(), view.name())
}

/// Repeats keys' or values' heads `axis` so that each query head has its own: `[…, g, …] -> […, h, …]`.
pub fn for_each_query_head(x: &Tensor, axis: usize, heads: usize) -> Result<Tensor> {
    let kv_heads = x.dim(axis)?;
    if kv_heads == heads {
        return Ok(x.clone());
    }
    let shared = heads / kv_heads.max(1);
    let owners: Vec<u32> = (0..heads).map(|head| (head / shared.max(1)) as u32).collect();
    Ok(x.contiguous()?.index_select(&Tensor::new(owners, x.device())?, axis)?)
}

impl Decoder {
    /// A kind of weight: of every layer, one after the other, or of one. Nothing else is unpacked.
    pub fn weight(&self, name: WeightName) -> Result<Tensor> {
        match (name.layer, name.view.in_layers()) {
            (Some(layer), true) => self.weight_of_layer(name.view, layer),
            (None, true) => {
                let layers = (0..self.spec.layers).map(|layer| self.weight_of_layer(name.view, layer));
                let layers = layers.collect::<Result<Vec<_>>>()?;
                if let Some(other) = layers.iter().position(|x| x.dims() != layers[0].dims()) {
                    let (first, shape) = (layers[0].dims(), layers[other].dims());
                    let reason = format!(
                        "layer 0 has shape {first:?} and layer {other} {shape:?}, which cannot be stacked; ask for one \
                         layer, `{}.{other}`",
                        name.view
                    );
                    return Err(missing(name.view, None, &reason));
                }
                Ok(Tensor::stack(&layers, 0)?)
            }
            (_, false) => self.weight_outside(name.view),
        }
    }

    fn weight_outside(&self, view: WeightView) -> Result<Tensor> {
        Ok(match view {
            WeightView::Embedding => self.weights.embed.to_tensor()?,
            WeightView::Positions => match &self.weights.pos_embed {
                Some(positions) => positions.clone(),
                None => return Err(missing(view, None, "the model has no learned positions")),
            },
            WeightView::Unembedding => self.weights.unembed.matrix.to_tensor()?,
            WeightView::UnembeddingBias => bias(&self.weights.unembed)?,
            _ => return Err(missing(view, None, "it belongs to a layer")),
        })
    }

    fn weight_of_layer(&self, view: WeightView, layer: usize) -> Result<Tensor> {
        let Some(LayerWeights { attention, mlp, .. }) = self.weights.layers.get(layer) else {
            return Err(missing(view, Some(layer), &format!("there are {} layers, from 0", self.spec.layers)));
        };
        let Spec { d_model, heads, kv_heads, d_head, .. } = self.spec;
        let reads = |linear: &Linear, heads| -> Result<Tensor> {
            Ok(linear.matrix.to_tensor()?.reshape((d_model, heads, d_head))?.transpose(0, 1)?.contiguous()?)
        };
        let by_head = |linear: &Linear, heads| -> Result<Tensor> { Ok(bias(linear)?.reshape((heads, d_head))?) };
        match view {
            WeightView::Query => reads(&attention.q, heads),
            WeightView::QueryBias => by_head(&attention.q, heads),
            WeightView::Key => reads(&attention.k, kv_heads),
            WeightView::KeyBias => by_head(&attention.k, kv_heads),
            WeightView::Value => reads(&attention.v, kv_heads),
            WeightView::ValueBias => by_head(&attention.v, kv_heads),
            WeightView::Output => Ok(attention.o.matrix.to_tensor()?.reshape((heads, d_head, d_model))?),
            WeightView::OutputBias => bias(&attention.o),
            _ => match mlp {
                MlpWeights::Dense(_) if view == WeightView::Router => {
                    Err(missing(view, Some(layer), "the layer has an MLP and no experts"))
                }
                MlpWeights::Dense(mlp) => of_mlp(view, layer, mlp),
                MlpWeights::Experts { router, .. } if view == WeightView::Router => Ok(router.matrix.to_tensor()?),
                MlpWeights::Experts { experts, .. } => {
                    let experts = experts.iter().map(|expert| of_mlp(view, layer, expert));
                    Ok(Tensor::stack(&experts.collect::<Result<Vec<_>>>()?, 0)?)
                }
            },
        }
    }
}

fn of_mlp(view: WeightView, layer: usize, mlp: &DenseWeights) -> Result<Tensor> {
    let linear = match (view, &mlp.up) {
        (WeightView::Out | WeightView::OutBias, _) => &mlp.down,
        (WeightView::In | WeightView::InBias, up) => up.as_ref().unwrap_or(&mlp.gate),
        (_, Some(_)) => &mlp.gate,
        (_, None) => return Err(missing(view, Some(layer), "the MLP is not gated: it has W_in and W_out")),
    };
    match view {
        WeightView::Gate | WeightView::In | WeightView::Out => Ok(linear.matrix.to_tensor()?),
        _ => bias(linear),
    }
}

/// A bias, zero where there is none.
fn bias(linear: &Linear) -> Result<Tensor> {
    match &linear.bias {
        Some(bias) => Ok(bias.contiguous()?),
        None => Ok(Tensor::zeros(linear.matrix.shape()?.1, DType::F32, &Device::Cpu)?),
    }
}

fn missing(view: WeightView, layer: Option<usize>, reason: &str) -> Error {
    Error::View { view: view.name().to_string(), layer, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        let name = |text| WeightName::parse(text).map(|name| (name.view.name(), name.layer));
        assert_eq!(name("W_Q").unwrap(), ("W_Q", None));
        assert_eq!(name("W_Q.3").unwrap(), ("W_Q", Some(3)));
        assert_eq!(name("blocks.3.attn.W_Q").unwrap(), ("W_Q", Some(3)));
        assert_eq!(name("blocks.0.mlp.b_out").unwrap(), ("b_out", Some(0)));
        assert_eq!(name("embed.W_E").unwrap(), ("W_E", None));
        assert_eq!(name("unembed.b_U").unwrap(), ("b_U", None));
        for (text, says) in [
            ("w_q", "did you mean `W_Q`?"),
            ("", "did you mean"),
            ("W_Q.x", "`x` is not the number of a layer"),
            ("W_Q.-1", "`-1` is not the number of a layer"),
            ("W_E.0", "belongs to no layer"),
            ("blocks.0.mlp.W_Q", "calls it `blocks.LAYER.attn.W_Q`"),
            ("attn.W_Q", "calls it `blocks.LAYER.attn.W_Q`"),
            ("blocks.0.embed.W_E", "calls it `embed.W_E`"),
            ("a.b.c", "write it like W_Q"),
        ] {
            let error = name(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn heads_are_repeated_for_the_queries_that_share_them() {
        let heads = Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        let repeated = for_each_query_head(&heads, 0, 4).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(repeated, [[0., 1., 2.], [0., 1., 2.], [3., 4., 5.], [3., 4., 5.]]);
    }
}
