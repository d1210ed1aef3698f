//! Where a weight of a Hugging Face checkpoint lies in a GGUF file, and what llama.cpp's converter did to it on the way.

/// What a converter did to a weight, to be undone when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// Nothing.
    Nothing,
    /// Rows of each query head: halves were interleaved, so that rotary pairs are neighbours.
    QueryRows,
    /// The same for key heads.
    KeyRows,
    /// 1 was added, as Gemma's norm does itself.
    AddOne,
    /// A matrix `[in, out]` was transposed.
    Transpose,
    /// Rows `[head, q k v, d_head]` were sorted to `[q k v, head, d_head]`.
    SortHeads,
    /// Rows `[group, q… k v, d_head]` were sorted to all q, all k, all v.
    SortGroups,
}

/// One row: the weight's name without its last part, `{}` for the layer and `{e}` for the expert (or head); the tensor's.
type Row = (&'static str, &'static str, Undo);

/// The names of one architecture.
#[derive(Debug, Clone, Copy)]
pub struct Names(&'static [&'static [Row]]);

/// A weight in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor's name.
    pub tensor: String,
    /// Which slice along its first axis, if experts (or heads' norms) share a tensor.
    pub expert: Option<usize>,
    /// What was done to it.
    pub undo: Undo,
}

use Undo::{AddOne, KeyRows, Nothing, QueryRows, SortGroups, SortHeads, Transpose};

const ENDS: &[Row] = &[
    ("model.embed_tokens", "token_embd", Nothing),
    ("model.norm", "output_norm", Nothing),
    ("lm_head", "output", Nothing),
];

const ATTENTION: &[Row] = &[
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm", Nothing),
    ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", Nothing),
    ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", Nothing),
    ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", Nothing),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", Nothing),
    ("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", Nothing),
    ("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", Nothing),
];

const INTERLEAVED: &[Row] = &[
    ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", QueryRows),
    ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", KeyRows),
];

const SECOND_NORM: &[Row] = &[("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm", Nothing)];

const GATED: &[Row] = &[
    ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate", Nothing),
    ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up", Nothing),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", Nothing),
];

const MIXTRAL: &[Row] = &[
    ("model.layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp", Nothing),
    ("model.layers.{}.block_sparse_moe.experts.{e}.w1", "blk.{}.ffn_gate_exps", Nothing),
    ("model.layers.{}.block_sparse_moe.experts.{e}.w2", "blk.{}.ffn_down_exps", Nothing),
    ("model.layers.{}.block_sparse_moe.experts.{e}.w3", "blk.{}.ffn_up_exps", Nothing),
];

const EXPERTS: &[Row] = &[
    ("model.layers.{}.mlp.gate", "blk.{}.ffn_gate_inp", Nothing),
    ("model.layers.{}.mlp.experts.{e}.gate_proj", "blk.{}.ffn_gate_exps", Nothing),
    ("model.layers.{}.mlp.experts.{e}.up_proj", "blk.{}.ffn_up_exps", Nothing),
    ("model.layers.{}.mlp.experts.{e}.down_proj", "blk.{}.ffn_down_exps", Nothing),
];

const GEMMA_NORMS: &[Row] = &[
    ("model.norm", "output_norm", AddOne),
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm", AddOne),
    ("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", AddOne),
    ("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", AddOne),
];

const GEMMA_SECOND_NORM: &[Row] = &[("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm", AddOne)];

const GEMMA_SANDWICH: &[Row] = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", AddOne),
    ("model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm", AddOne),
    ("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", AddOne),
];

const POST_NORMS: &[Row] = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", Nothing),
    ("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", Nothing),
];

const HEAD_NORMS: &[Row] = &[
    ("model.layers.{}.self_attn.q_layernorm.norms.{e}", "blk.{}.attn_q_norm", Nothing),
    ("model.layers.{}.self_attn.k_layernorm.norms.{e}", "blk.{}.attn_k_norm", Nothing),
];

const PHI2: &[Row] = &[
    ("model.final_layernorm", "output_norm", Nothing),
    ("model.layers.{}.self_attn.dense", "blk.{}.attn_output", Nothing),
    ("model.layers.{}.mlp.fc1", "blk.{}.ffn_up", Nothing),
    ("model.layers.{}.mlp.fc2", "blk.{}.ffn_down", Nothing),
];

const PHI3: &[Row] = &[
    ("model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv", Nothing),
    ("model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up", Nothing),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", Nothing),
];

const STARCODER2: &[Row] = &[
    ("model.layers.{}.mlp.c_fc", "blk.{}.ffn_up", Nothing),
    ("model.layers.{}.mlp.c_proj", "blk.{}.ffn_down", Nothing),
];

const GPT2_ROWS: &[Row] = &[
    ("transformer.wte", "token_embd", Nothing),
    ("transformer.wpe", "position_embd", Nothing),
    ("transformer.ln_f", "output_norm", Nothing),
    ("lm_head", "output", Nothing),
    ("transformer.h.{}.ln_1", "blk.{}.attn_norm", Nothing),
    ("transformer.h.{}.attn.c_attn", "blk.{}.attn_qkv", Transpose),
    ("transformer.h.{}.attn.c_proj", "blk.{}.attn_output", Transpose),
    ("transformer.h.{}.ln_2", "blk.{}.ffn_norm", Nothing),
    ("transformer.h.{}.mlp.c_fc", "blk.{}.ffn_up", Transpose),
    ("transformer.h.{}.mlp.c_proj", "blk.{}.ffn_down", Transpose),
];

/// Matrices as torch.nn.Linear has them.
const LINEAR_GPT2: &[Row] = &[
    ("transformer.h.{}.attn.c_attn", "blk.{}.attn_qkv", Nothing),
    ("transformer.h.{}.attn.c_proj", "blk.{}.attn_output", Nothing),
    ("transformer.h.{}.mlp.c_fc", "blk.{}.ffn_up", Nothing),
    ("transformer.h.{}.mlp.c_proj", "blk.{}.ffn_down", Nothing),
];

const FALCON_ROWS: &[Row] = &[
    ("transformer.word_embeddings", "token_embd", Nothing),
    ("transformer.ln_f", "output_norm", Nothing),
    ("lm_head", "output", Nothing),
    ("transformer.h.{}.input_layernorm", "blk.{}.attn_norm", Nothing),
    ("transformer.h.{}.ln_mlp", "blk.{}.attn_norm", Nothing),
    ("transformer.h.{}.ln_attn", "blk.{}.attn_norm_2", Nothing),
    ("transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv", SortGroups),
    ("transformer.h.{}.self_attention.dense", "blk.{}.attn_output", Nothing),
    ("transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up", Nothing),
    ("transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down", Nothing),
];

const GPTNEOX_ROWS: &[Row] = &[
    ("gpt_neox.embed_in", "token_embd", Nothing),
    ("gpt_neox.final_layer_norm", "output_norm", Nothing),
    ("embed_out", "output", Nothing),
    ("gpt_neox.layers.{}.input_layernorm", "blk.{}.attn_norm", Nothing),
    ("gpt_neox.layers.{}.attention.query_key_value", "blk.{}.attn_qkv", SortHeads),
    ("gpt_neox.layers.{}.attention.dense", "blk.{}.attn_output", Nothing),
    ("gpt_neox.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm", Nothing),
    ("gpt_neox.layers.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up", Nothing),
    ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down", Nothing),
];

impl Names {
    /// Llama and Mixtral.
    pub const LLAMA: Self = Self(&[INTERLEAVED, ATTENTION, SECOND_NORM, GATED, MIXTRAL, ENDS]);
    /// Qwen2, Qwen3.
    pub const PLAIN: Self = Self(&[ATTENTION, SECOND_NORM, GATED, ENDS]);
    /// StableLM.
    pub const STABLELM: Self = Self(&[ATTENTION, HEAD_NORMS, SECOND_NORM, GATED, ENDS]);
    /// Qwen3 with experts.
    pub const EXPERTS: Self = Self(&[ATTENTION, SECOND_NORM, EXPERTS, ENDS]);
    /// Gemma 1.
    pub const GEMMA: Self = Self(&[GEMMA_NORMS, ATTENTION, GEMMA_SECOND_NORM, GATED, ENDS]);
    /// Gemma 2 and 3.
    pub const GEMMA_SANDWICH: Self = Self(&[GEMMA_NORMS, ATTENTION, GEMMA_SANDWICH, GATED, ENDS]);
    /// OLMo 2.
    pub const POST_NORMS: Self = Self(&[ATTENTION, POST_NORMS, GATED, ENDS]);
    /// Phi 1 and 2.
    pub const PHI2: Self = Self(&[PHI2, ATTENTION, ENDS]);
    /// Phi 3 and 4.
    pub const PHI3: Self = Self(&[PHI3, ATTENTION, SECOND_NORM, ENDS]);
    /// StarCoder 2.
    pub const STARCODER2: Self = Self(&[ATTENTION, SECOND_NORM, STARCODER2, ENDS]);
    /// GPT-2.
    pub const GPT2: Self = Self(&[GPT2_ROWS]);
    /// StarCoder.
    pub const STARCODER: Self = Self(&[LINEAR_GPT2, GPT2_ROWS]);
    /// Falcon.
    pub const FALCON: Self = Self(&[FALCON_ROWS]);
    /// GPT-NeoX and Pythia.
    pub const GPTNEOX: Self = Self(&[GPTNEOX_ROWS]);

    /// Where the weight `name` lies; none if the architecture has no such weight.
    pub fn place(self, name: &str) -> Option<Place> {
        let (stem, last) = name.rsplit_once('.')?;
        let mut numbers = Vec::new();
        let parts: Vec<&str> = stem
            .split('.')
            .map(|part| match (part.parse::<usize>(), numbers.len()) {
                (Ok(number), 0 | 1) => {
                    numbers.push(number);
                    if numbers.len() == 1 { "{}" } else { "{e}" }
                }
                _ => part,
            })
            .collect();
        let pattern = parts.join(".");
        let (_, tensor, undo) = self.0.iter().copied().flatten().find(|(weight, ..)| *weight == pattern)?;
        let tensor = match numbers.first() {
            Some(layer) => tensor.replace("{}", &layer.to_string()),
            None => tensor.to_string(),
        };
        // A bias has no second axis to transpose.
        let undo = if last == "bias" && *undo == Transpose { Nothing } else { *undo };
        Some(Place { tensor: format!("{tensor}.{last}"), expert: numbers.get(1).copied(), undo })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_found_by_layer_and_expert() {
        let check = |names: Names, weight: &str, tensor: &str, expert, undo| {
            let place = names.place(weight).unwrap();
            assert_eq!(place, Place { tensor: tensor.into(), expert, undo }, "{weight}");
        };
        check(Names::LLAMA, "model.embed_tokens.weight", "token_embd.weight", None, Nothing);
        check(Names::LLAMA, "model.layers.12.self_attn.q_proj.weight", "blk.12.attn_q.weight", None, QueryRows);
        check(Names::LLAMA, "model.layers.0.self_attn.k_proj.bias", "blk.0.attn_k.bias", None, KeyRows);
        check(Names::PLAIN, "model.layers.0.self_attn.k_proj.bias", "blk.0.attn_k.bias", None, Nothing);
        let (expert, tensor) = ("model.layers.3.block_sparse_moe.experts.7.w2.weight", "blk.3.ffn_down_exps.weight");
        check(Names::LLAMA, expert, tensor, Some(7), Nothing);
        check(Names::GEMMA_SANDWICH, "model.norm.weight", "output_norm.weight", None, AddOne);
        check(Names::GPT2, "transformer.h.1.attn.c_attn.weight", "blk.1.attn_qkv.weight", None, Transpose);
        check(Names::GPT2, "transformer.h.1.attn.c_attn.bias", "blk.1.attn_qkv.bias", None, Nothing);
        assert_eq!(Names::GPT2.place("h.1.attn.c_attn.bias"), None);
        assert_eq!(Names::GPT2.place("wte.weight"), None);
        assert_eq!(Names::PLAIN.place("weight"), None);
    }
}
