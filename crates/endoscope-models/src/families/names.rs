//! The names of weights in a family's files, as a table, and the one function that takes weights by it.
//!
//! Almost all checkpoints differ in what their tensors are called, which are fused, and how fused ones are laid out.
//! A family says so in a [`Names`]; nothing else of it reads weights.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::decoder::{AttentionWeights, DenseWeights, LayerWeights, MlpWeights, NormWeights, Weights};
use crate::error::Result;
use crate::ops::{Embedding, Linear, Matrix};
use crate::spec::{Mlp, Norm, Order, Positions, QkNormOver, Spec};
use crate::weights::{Stored, WeightSource};

/// The names of a checkpoint. Those of a layer are relative to `layers.N`; `.weight` and `.bias` are added.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// What stands before every name but the unembedding's; a file without it (of a bare model) is read too.
    pub prefix: &'static str,
    pub embed: &'static str,
    /// Learned positions, and how many of their rows come before that of position 0.
    pub positions: (&'static str, usize),
    pub layers: &'static str,
    pub ln1: &'static str,
    pub ln1_post: &'static str,
    pub ln2: &'static str,
    pub ln2_post: &'static str,
    pub ln_final: &'static str,
    pub norms: NormTensors,
    pub qkv: Qkv,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub attention_out: &'static str,
    pub mlp: MlpNames,
    /// Experts: the router, and what stands before an expert's number and its own three.
    pub router: &'static str,
    pub experts: &'static str,
    pub expert: MlpNames,
    pub unembed: &'static str,
    pub unembed_bias: bool,
    pub matrices: Matrices,
}

/// The tensors of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormTensors {
    Weight,
    WeightAndBias,
    /// The file holds the weight less 1.
    WeightLessOne,
}

/// Queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) enum Qkv {
    Apart([&'static str; 3]),
    /// One matrix: all queries, all keys, all values.
    Blocks(&'static str),
    /// One matrix: for each key/value head its queries, its key, its value.
    Groups(&'static str),
}

/// The matrices of an MLP.
#[derive(Debug, Clone, Copy)]
pub(super) enum MlpNames {
    Plain {
        up: &'static str,
        down: &'static str,
    },
    Gated {
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// Gate and up in one matrix, the gate first.
    Fused {
        gate_up: &'static str,
        down: &'static str,
    },
}

/// How matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matrices {
    /// `[out, in]`.
    Linear,
    /// `[in, out]`.
    Conv1D,
}

impl Names {
    /// Llama's names, which many have taken over.
    pub const LLAMA: Self = Self {
        prefix: "model.",
        embed: "embed_tokens",
        positions: ("", 0),
        layers: "layers",
        ln1: "input_layernorm",
        ln1_post: "",
        ln2: "post_attention_layernorm",
        ln2_post: "",
        ln_final: "norm",
        norms: NormTensors::Weight,
        qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        q_norm: "self_attn.q_norm",
        k_norm: "self_attn.k_norm",
        attention_out: "self_attn.o_proj",
        mlp: MlpNames::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        router: "mlp.gate",
        experts: "mlp.experts",
        expert: MlpNames::Gated { gate: "gate_proj", up: "up_proj", down: "down_proj" },
        unembed: "lm_head",
        unembed_bias: false,
        matrices: Matrices::Linear,
    };

    /// GPT-2's, likewise.
    pub const GPT2: Self = Self {
        prefix: "transformer.",
        embed: "wte",
        positions: ("wpe", 0),
        layers: "h",
        ln1: "ln_1",
        ln2: "ln_2",
        ln_final: "ln_f",
        norms: NormTensors::WeightAndBias,
        qkv: Qkv::Blocks("attn.c_attn"),
        attention_out: "attn.c_proj",
        mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
        matrices: Matrices::Conv1D,
        ..Self::LLAMA
    };

    /// Takes all weights of `spec`.
    pub fn weights(&self, spec: &Spec, source: &mut dyn WeightSource) -> Result<Weights> {
        let bare = source.has(&format!("{}.weight", self.embed));
        Reader { names: self, prefix: if bare { "" } else { self.prefix }, spec, source }.weights()
    }
}

struct Reader<'a> {
    names: &'a Names,
    prefix: &'a str,
    spec: &'a Spec,
    source: &'a mut dyn WeightSource,
}

impl Reader<'_> {
    fn weights(mut self) -> Result<Weights> {
        let Self { names, prefix, spec, .. } = self;
        let (embed, unembed) = self.embeddings(&format!("{prefix}{}.weight", names.embed))?;
        let (positions, skipped) = names.positions;
        let pos_embed = match spec.positions {
            Positions::Learned => {
                let shape = [spec.context.saturating_add(skipped), spec.d_model];
                let table = self.source.get(&format!("{prefix}{positions}.weight"), &shape)?;
                Some(table.narrow(0, skipped, spec.context)?)
            }
            _ => None,
        };
        let layers = (0..spec.layers)
            .map(|layer| self.layer(layer, &format!("{prefix}{}.{layer}.", names.layers)))
            .collect::<Result<_>>()?;
        let ln_final = self.norm(&format!("{prefix}{}", names.ln_final), spec.d_model)?;
        Ok(Weights { embed, pos_embed, layers, ln_final, unembed })
    }

    fn layer(&mut self, layer: usize, block: &str) -> Result<LayerWeights> {
        let Self { names, spec, .. } = *self;
        let mut norm =
            |there: bool, name: &str| there.then(|| self.norm(&format!("{block}{name}"), spec.d_model)).transpose();
        let (before, after) = (spec.placement.before(), spec.placement.after());
        let ln1 = norm(before, names.ln1)?;
        let ln1_post = norm(after, names.ln1_post)?;
        let ln2 = norm(before && spec.order != Order::ParallelSharedNorm, names.ln2)?;
        let ln2_post = norm(after, names.ln2_post)?;
        let attention = self.attention(block)?;
        let mlp = match spec.experts(layer) {
            None => MlpWeights::Dense(self.mlp(block, names.mlp, spec.d_mlp)?),
            Some(experts) => MlpWeights::Experts {
                router: self.linear(&format!("{block}{}", names.router), spec.d_model, experts.count, false)?,
                experts: (0..experts.count)
                    .map(|at| self.mlp(&format!("{block}{}.{at}.", names.experts), names.expert, experts.d_mlp))
                    .collect::<Result<_>>()?,
            },
        };
        Ok(LayerWeights { ln1, attention, ln1_post, ln2, mlp, ln2_post })
    }

    fn attention(&mut self, block: &str) -> Result<AttentionWeights> {
        let Self { names, spec, .. } = *self;
        let &Spec { d_model, d_head, heads, kv_heads, biases, .. } = spec;
        let (queries, keys) = (heads * d_head, kv_heads * d_head);
        let all = queries + 2 * keys;
        let [q, k, v] = match names.qkv {
            Qkv::Apart([q, k, v]) => [
                self.linear(&format!("{block}{q}"), d_model, queries, biases.qkv)?,
                self.linear(&format!("{block}{k}"), d_model, keys, biases.qkv)?,
                self.linear(&format!("{block}{v}"), d_model, keys, biases.qkv)?,
            ],
            Qkv::Blocks(name) => {
                let parts = [0..queries, queries..queries + keys, queries + keys..all];
                self.parts(&format!("{block}{name}"), d_model, all, parts.map(|part| vec![part]), biases.qkv)?
            }
            Qkv::Groups(name) => {
                let shared = heads / kv_heads.max(1);
                let pieces = |first: usize, count: usize| -> Vec<Range<usize>> {
                    let groups = (0..kv_heads).map(|group| group * (shared + 2) + first);
                    groups.map(|head| head * d_head..(head + count) * d_head).collect()
                };
                let parts = [pieces(0, shared), pieces(shared, 1), pieces(shared + 1, 1)];
                self.parts(&format!("{block}{name}"), d_model, all, parts, biases.qkv)?
            }
        };
        let o = self.linear(&format!("{block}{}", names.attention_out), queries, d_model, biases.attention_out)?;
        let q_norm = self.qk_norm(&format!("{block}{}", names.q_norm), heads)?;
        let k_norm = self.qk_norm(&format!("{block}{}", names.k_norm), kv_heads)?;
        Ok(AttentionWeights { q, k, v, o, q_norm, k_norm })
    }

    fn mlp(&mut self, block: &str, names: MlpNames, d_mlp: usize) -> Result<DenseWeights> {
        let d_model = self.spec.d_model;
        let bias = self.spec.biases.mlp;
        debug_assert_eq!(self.spec.mlp == Mlp::Plain, matches!(names, MlpNames::Plain { .. }));
        let name = |part: &str| format!("{block}{part}");
        Ok(match names {
            MlpNames::Plain { up, down } => DenseWeights {
                gate: self.linear(&name(up), d_model, d_mlp, bias)?,
                up: None,
                down: self.linear(&name(down), d_mlp, d_model, bias)?,
            },
            MlpNames::Gated { gate, up, down } => DenseWeights {
                gate: self.linear(&name(gate), d_model, d_mlp, bias)?,
                up: Some(self.linear(&name(up), d_model, d_mlp, bias)?),
                down: self.linear(&name(down), d_mlp, d_model, bias)?,
            },
            MlpNames::Fused { gate_up, down } => {
                let parts = [0..d_mlp, d_mlp..2 * d_mlp].map(|part| std::iter::once(part).collect());
                let [gate, up] = self.parts(&name(gate_up), d_model, 2 * d_mlp, parts, bias)?;
                DenseWeights { gate, up: Some(up), down: self.linear(&name(down), d_mlp, d_model, bias)? }
            }
        })
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        let [whole] = self.parts(name, inputs, outputs, [std::iter::once(0..outputs).collect()], bias)?;
        Ok(whole)
    }

    /// A linear map cut by its outputs.
    fn parts<const N: usize>(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        parts: [Vec<Range<usize>>; N],
        bias: bool,
    ) -> Result<[Linear; N]> {
        let stored = match self.names.matrices {
            Matrices::Linear => Stored::OutIn { inputs, outputs },
            Matrices::Conv1D => Stored::InOut { inputs, outputs },
        };
        let matrices = self.source.matrices(&format!("{name}.weight"), stored, &parts)?;
        let bias = bias.then(|| self.source.get(&format!("{name}.bias"), &[outputs])).transpose()?;
        let mut linears = Vec::with_capacity(N);
        for (matrix, part) in matrices.into_iter().zip(&parts) {
            let bias = bias.as_ref().map(|bias| crate::weights::chosen(bias, 0, part)).transpose()?;
            linears.push(Linear { matrix, bias });
        }
        let found = linears.len();
        <[Linear; N]>::try_from(linears)
            .map_err(|_| candle_core::Error::Msg(format!("{name}: {found} parts in the place of {N}")).into())
    }

    fn norm(&mut self, name: &str, size: usize) -> Result<NormWeights> {
        if self.spec.norm == Norm::PlainLayerNorm {
            return Ok(NormWeights { weight: Tensor::ones(size, DType::F32, &Device::Cpu)?, bias: None });
        }
        let mut get = |part: &str| self.source.get(&format!("{name}.{part}"), &[size]);
        Ok(match self.names.norms {
            NormTensors::Weight => NormWeights { weight: get("weight")?, bias: None },
            NormTensors::WeightAndBias => NormWeights { weight: get("weight")?, bias: Some(get("bias")?) },
            NormTensors::WeightLessOne => NormWeights { weight: (get("weight")? + 1.)?, bias: None },
        })
    }

    fn qk_norm(&mut self, name: &str, heads: usize) -> Result<Option<NormWeights>> {
        let Some(qk_norm) = self.spec.qk_norm else { return Ok(None) };
        let d_head = self.spec.d_head;
        Ok(Some(match qk_norm.over {
            QkNormOver::Head => self.norm(name, d_head)?,
            QkNormOver::AllHeads => self.norm(name, heads * d_head)?,
            QkNormOver::OwnHead => {
                debug_assert_eq!(qk_norm.norm, Norm::LayerNorm);
                let weights = (0..heads)
                    .map(|head| self.source.get(&format!("{name}.norms.{head}.weight"), &[d_head]))
                    .collect::<Result<Vec<_>>>()?;
                NormWeights { weight: Tensor::stack(&weights, 0)?, bias: None }
            }
        }))
    }

    /// The embedding of `name`, and the unembedding: the same matrix transposed, or one of its own.
    fn embeddings(&mut self, name: &str) -> Result<(Embedding, Linear)> {
        let Self { names, spec, .. } = *self;
        let &Spec { vocabulary, d_model, .. } = spec;
        // The unembedding is stored as [out, in] even where all others are not.
        let stored = Stored::OutIn { inputs: d_model, outputs: vocabulary };
        let whole = [std::iter::once(0..vocabulary).collect()];
        let own = if spec.tied { name.to_string() } else { format!("{}.weight", names.unembed) };
        let matrix = self.source.matrices(&own, stored, &whole)?.remove(0);
        let bias = names.unembed_bias.then(|| self.source.get(&format!("{}.bias", names.unembed), &[vocabulary]));
        let unembed = Linear { matrix, bias: bias.transpose()? };
        Ok(match &unembed.matrix {
            Matrix::Packed(matrix) if spec.tied => (Embedding::Tied(matrix.clone()), unembed),
            _ => (Embedding::Table(self.source.table(name, &[vocabulary, d_model])?), unembed),
        })
    }
}
