//! What single tokens say in a network of one layer, read from its weights (Wang et al. 2024, ALPINE, arXiv 2405.09220,
//! section 4.2).
//!
//! With `x` the embedding of a token, `F` the MLP, `A` what attention writes of a token to which it gives all its
//! weight (`W_V W_O` of all heads), and `U` final norm and unembedding, a token that stands at the current position
//! says `U(x + F(x))`, and one that is looked at makes the current position say `U(A(x) + F(A(x)))`. In the paper's
//! task the first is which node follows which (`W_M'`), the second which node lies on the way to a target (`W_V'`).
//! Norms and biases are those of the network; positions are left out.
//!
//! Both are runs of single tokens under edits, so that they need no arithmetic of their own.

use candle_core::DType;
use endoscope_net::{Capture, Change, Edit, Index, Inputs, Network, Plan};

use crate::error::{Error, Result};

const POSITIONS: &str = "hook_pos_embed";
const WRITTEN: &str = "blocks.0.hook_attn_out";
const BETWEEN: &str = "blocks.0.hook_resid_mid";

/// Logits of single tokens for single tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenViews {
    /// `[token][token]`: what a token at the current position says of the next.
    pub at_hand: Vec<Vec<f64>>,
    /// `[token][token]`: what a token that is looked at says of the next.
    pub looked_at: Vec<Vec<f64>>,
}

/// The views of `tokens` on each other. An error where the network has several layers, or an MLP that does not read
/// what attention writes: then no two matrices are the whole of what it knows of tokens.
pub fn token_views(network: &dyn Network, tokens: &[u32]) -> Result<TokenViews> {
    let sites = network.sites();
    let has = |name: &str| sites.resolve_one(name).is_ok();
    if sites.layers() != 1 || !has(WRITTEN) || !has(BETWEEN) {
        return Err(Error::Lens(format!(
            "the views of tokens are those of one layer whose MLP reads what attention writes; this network has {} layers{}",
            sites.layers(),
            if has(BETWEEN) { "" } else { ", whose MLP stands beside attention" }
        )));
    }
    let inputs = Inputs::tokens(tokens.iter().map(|&token| vec![token]).collect())?;
    let columns = Index::List(tokens.iter().map(|&token| i64::from(token)).collect());
    let plan = || {
        let plan = Plan::default().columns_at(columns.clone());
        if has(POSITIONS) { plan.edit(Edit::new(POSITIONS, Change::Zero)) } else { plan }
    };
    let logits = |plan: &Plan| -> Result<Vec<Vec<f64>>> {
        Ok(network.run(&inputs, plan)?.outputs.squeeze(1)?.to_dtype(DType::F64)?.to_vec2()?)
    };
    let at_hand = logits(&plan().edit(Edit::new(WRITTEN, Change::Zero)))?;
    // A token alone looks at itself only.
    let alone = network.run(&inputs, &plan().capture(Capture::new(WRITTEN)))?;
    let value = alone.captured.get(WRITTEN)?.clone().into();
    let looked_at = logits(&plan().edit(Edit::new(BETWEEN, Change::Set { value })))?;
    Ok(TokenViews { at_hand, looked_at })
}
