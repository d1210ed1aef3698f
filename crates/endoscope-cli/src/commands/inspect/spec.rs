//! A decoder's switches in words; those in their plain position are left out.

use endoscope_models::rotary::{Pairs, Rotary, RotaryScaling};
use endoscope_models::{Activation, AttentionScale, Mlp, Norm, Order, Placement, Positions, QkNormOver, Spec};

/// A line for each size or switch: `  name        what`.
pub fn lines(spec: &Spec) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |name: &str, what: String| lines.push(format!("  {name:<11} {what}"));
    let order = match spec.order {
        Order::Sequential => "",
        Order::Parallel => ", attention and MLP side by side",
        Order::ParallelSharedNorm => ", attention and MLP side by side, with one norm",
    };
    say("layers", format!("{}{order}", spec.layers));
    say("d_model", spec.d_model.to_string());
    let grouped = match spec.kv_heads == spec.heads {
        true => String::new(),
        false => format!(", {} key/value heads", spec.kv_heads),
    };
    say("heads", format!("{} of width {}{grouped}", spec.heads, spec.d_head));
    let kind = match spec.mlp {
        Mlp::Plain => "plain",
        Mlp::Gated => "gated",
    };
    say("d_mlp", format!("{} ({kind}, {})", spec.d_mlp, activation(spec.activation)));
    if let Some(experts) = &spec.experts {
        let dense = match experts.dense_layers.as_slice() {
            [] => String::new(),
            layers => format!("; an MLP in layers {}", listed(layers)),
        };
        say(
            "experts",
            format!("{} of width {}, {} read a position{dense}", experts.count, experts.d_mlp, experts.active),
        );
    }
    let placement = match spec.placement {
        Placement::Pre => "before attention and MLP",
        Placement::Sandwich => "before attention and MLP, and on what they write",
        Placement::Post => "on what attention and MLP write",
    };
    say("norm", format!("{} {placement}, epsilon {:e}", norm(spec.norm), spec.epsilon));
    if let Some(qk) = spec.qk_norm {
        let over = match qk.over {
            QkNormOver::Head => "each head",
            QkNormOver::OwnHead => "each head, with weights of its own",
            QkNormOver::AllHeads => "all heads together",
        };
        say("q/k norm", format!("{} over {over}", norm(qk.norm)));
    }
    positions(spec).into_iter().for_each(|what| say("positions", what));
    if spec.windows.iter().any(Option::is_some) {
        let mut kinds: Vec<(usize, Vec<usize>)> = Vec::new();
        for (layer, window) in spec.windows.iter().enumerate() {
            let Some(window) = *window else { continue };
            match kinds.iter_mut().find(|(known, _)| *known == window) {
                Some((_, layers)) => layers.push(layer),
                None => kinds.push((window, vec![layer])),
            }
        }
        for (window, layers) in kinds {
            say("window", format!("{window} keys, in {}", of_layers(&layers, spec.layers)));
        }
    }
    match spec.attention_scale {
        AttentionScale::InverseSqrtHead => {}
        AttentionScale::InverseSqrtHeadByLayer => say("scores", "divided by sqrt(d_head) (layer + 1)".into()),
        AttentionScale::One => say("scores", "not scaled".into()),
        AttentionScale::ByLayer => say("scores", "divided by layer + 1".into()),
        AttentionScale::Value(scale) => say("scores", format!("times {scale}")),
    }
    if let Some(cap) = spec.attention_softcap {
        say("scores", format!("soft-capped at {cap}"));
    }
    if let Some(clip) = spec.clip_qkv {
        say("q, k, v", format!("clamped to {clip} either way"));
    }
    for (name, factor, what) in [
        ("embedding", spec.embedding_scale, "times"),
        ("writes", spec.residual_scale, "times"),
        ("logits", spec.logit_scale, "times"),
    ] {
        if factor != 1. {
            say(name, format!("{what} {factor}"));
        }
    }
    if let Some(cap) = spec.logit_softcap {
        say("logits", format!("soft-capped at {cap}"));
    }
    say("vocabulary", format!("{}, {} unembedding", spec.vocabulary, if spec.tied { "tied" } else { "own" }));
    lines
}

fn norm(norm: Norm) -> &'static str {
    match norm {
        Norm::LayerNorm => "LayerNorm",
        Norm::PlainLayerNorm => "LayerNorm without weights",
        Norm::RmsNorm => "RMSNorm",
    }
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluErf => "GELU",
        Activation::GeluTanh => "GELU by tanh",
        Activation::Silu => "SiLU",
        Activation::Relu => "ReLU",
    }
}

fn positions(spec: &Spec) -> Vec<String> {
    let context = format!("context {}", spec.context);
    match &spec.positions {
        Positions::Learned => vec![format!("learned, {context}")],
        Positions::Alibi => vec![format!("ALiBi, {context}")],
        Positions::None => vec![format!("none, {context}")],
        Positions::Rotary { kinds, layers } => kinds
            .iter()
            .enumerate()
            .map(|(number, kind)| {
                let own: Vec<usize> = (0..layers.len()).filter(|&layer| layers[layer] == Some(number)).collect();
                let place =
                    if layers.is_empty() { String::new() } else { format!(", in {}", of_layers(&own, spec.layers)) };
                format!("{}, {context}{place}", rotary(kind, spec.d_head))
            })
            .collect(),
    }
}

fn rotary(rotary: &Rotary, d_head: usize) -> String {
    let part = if rotary.dims == d_head { String::new() } else { format!(" of {} dims", rotary.dims) };
    let pairs = match rotary.pairs {
        Pairs::Halves => "",
        Pairs::Neighbours => ", neighbours paired",
    };
    let scaling = match &rotary.scaling {
        RotaryScaling::None => String::new(),
        RotaryScaling::Linear { factor } => format!(", linear scaling by {factor}"),
        RotaryScaling::Factors { .. } => ", scaled by a factor for each pair".into(),
        RotaryScaling::Llama3 { factor, .. } => format!(", llama3 scaling by {factor}"),
        RotaryScaling::Yarn { factor, .. } => format!(", yarn scaling by {factor}"),
    };
    format!("rotary{part}, base {}{pairs}{scaling}", rotary.base)
}

fn of_layers(layers: &[usize], all: usize) -> String {
    match layers.len() == all {
        true => "every layer".into(),
        false => format!("layers {}", listed(layers)),
    }
}

/// `0, 2, 4`, cut after a dozen.
fn listed(layers: &[usize]) -> String {
    let shown: Vec<String> = layers.iter().take(12).map(usize::to_string).collect();
    let more = layers.len().saturating_sub(12);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
