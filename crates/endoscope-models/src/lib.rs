//! Networks that Endoscope can look into: the one decoder, the families that translate to it, weights, tokenizer,
//! generation.
//!
//! For whoever wants a model opened: [`Model::open`] reads a Hugging Face directory; its `decoder` is an
//! [`endoscope_net::Network`] with every site. Start reading at [`decoder`].
//!
//! ```no_run
//! use endoscope_models::Model;
//! use endoscope_net::{Capture, Inputs, Network, Plan};
//!
//! let model = Model::open("path/to/model")?;
//! let plan = Plan::default().capture(Capture::new("pattern.0"));
//! let run = model.decoder.run(&Inputs::tokens(vec![vec![1, 2, 3]])?, &plan)?;
//! println!("{:?}", run.captured.get("blocks.0.attn.hook_pattern")?);
//! # Ok::<(), endoscope_models::Error>(())
//! ```
//!
//! Not here: what a method does with a network (endoscope-causal), training (endoscope-train), any printing.

#![forbid(unsafe_code)]

mod branches;
mod cache;
pub mod certificate;
mod chat;
pub mod circuits;
pub mod config;
pub mod decoder;
mod error;
mod experts;
pub mod factored;
pub mod families;
mod generate;
pub mod gguf;
pub mod hub;
mod model;
mod numbers;
mod ops;
mod pass;
mod positions;
pub mod process;
pub mod rotary;
mod sampling;
mod save;
mod singular;
mod sites;
mod spec;
mod text_stream;
mod tokenizer;
pub mod views;
mod weights;

pub use cache::Cache;
pub use chat::{Chat, ChatTemplate, ChatTemplates, Clock, GenerationPrompt, Message, Rendered, RenderedMessage};
pub use decoder::{AttentionWeights, Compute, Decoder, DenseWeights, LayerWeights, MlpWeights, NormWeights, Weights};
pub use endoscope_kernels::Precision;
pub use error::{Error, Result};
pub use families::Family;
pub use generate::{Caching, Finish, Generation, Settings, Step, generate, generate_batch};
pub use model::Model;
pub use ops::{Embedding, Linear, Matrix};
pub use positions::{NamedPositions, PromptTokens};
pub use sampling::Sampling;
pub use save::{model_files, save, weights_file};
pub use spec::{
    Activation, AttentionScale, Biases, ExpertWeights, Experts, Mlp, Norm, Order, Placement, Positions, QkNorm,
    QkNormOver, Spec,
};
pub use tokenizer::{Bos, Encoded, EncodedChat, MessageSpan, Tokenizer};
pub use weights::{Depth, Inventory, Stored, WeightFiles, WeightSource};
