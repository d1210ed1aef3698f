//! How much arithmetic and memory traffic a work needs at least: what its share of the machine's limit is counted from.

use endoscope_models::{AttentionWeights, Decoder, DenseWeights, LayerWeights, Linear, Matrix, Mlp, MlpWeights, Spec};

/// The numbers in all matrices that each token passes through; the embedding is looked up, not multiplied.
pub fn matrix_weights(spec: &Spec) -> usize {
    let attention = 2 * spec.d_model * spec.d_head * (spec.heads + spec.kv_heads);
    let each = match spec.mlp {
        Mlp::Plain => 2,
        Mlp::Gated => 3,
    } * spec.d_model;
    let mlp = |layer: usize| match spec.experts(layer) {
        None => each * spec.d_mlp,
        Some(experts) => each * experts.active * experts.d_mlp + spec.d_model * experts.count,
    };
    spec.layers * attention + (0..spec.layers).map(mlp).sum::<usize>() + spec.d_model * spec.vocabulary
}

/// Floating-point operations of a forward pass with all logits: two for each weight and token, and those of attention's two
/// products over the keys that a query sees.
pub fn forward_flop(spec: &Spec, batch: usize, length: usize) -> f64 {
    let seen = length * (length + 1) / 2;
    let attention = 2 * 2 * spec.layers * spec.heads * spec.d_head * seen;
    (batch * (2 * matrix_weights(spec) * length + attention)) as f64
}

/// The same with the backward pass, whose products are two for each of the forward pass.
pub fn training_flop(spec: &Spec, batch: usize, length: usize) -> f64 {
    3. * forward_flop(spec, batch, length)
}

/// Bytes of weights that one decoded token reads, as they are kept; keys and values are not counted.
pub fn decode_bytes(decoder: &Decoder) -> f64 {
    let bytes = |linear: &Linear| match &linear.matrix {
        Matrix::Packed(matrix) => matrix.bytes(),
        Matrix::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
    };
    let layer = |layer: &LayerWeights| {
        let AttentionWeights { q, k, v, o, .. } = &layer.attention;
        let dense = |mlp: &DenseWeights| [&mlp.gate, &mlp.down].into_iter().chain(&mlp.up).map(bytes).sum::<usize>();
        let mlp = match (&layer.mlp, &decoder.spec.experts) {
            (MlpWeights::Dense(mlp), _) => dense(mlp),
            // Experts are alike: a token reads as many as are active.
            (MlpWeights::Experts { router, experts }, spec) => {
                let active = spec.as_ref().map_or(experts.len(), |spec| spec.active);
                bytes(router) + experts.iter().take(active).map(dense).sum::<usize>()
            }
        };
        [q, k, v, o].into_iter().map(bytes).sum::<usize>() + mlp
    };
    let weights = &decoder.weights;
    (weights.layers.iter().map(layer).sum::<usize>() + bytes(&weights.unembed)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::model::GPT2_SMALL;

    #[test]
    fn gpt2_small_has_124_million_weights_less_positions_norms_and_biases() {
        let spec = GPT2_SMALL.spec(50257).unwrap();
        let positions = 1024 * 768;
        let (norms, biases) = (25 * 2 * 768, 12 * (4 * 768 + 768 + 4 * 768));
        assert_eq!(matrix_weights(&spec) + positions + norms + biases, 124_439_808);
        // One token sees itself: scores and mixing, 2 operations for each of 768 numbers, in 12 layers.
        let attention = 12 * 2 * 2 * 768;
        assert_eq!(forward_flop(&spec, 1, 1), (2 * matrix_weights(&spec) + attention) as f64);
        assert_eq!(forward_flop(&spec, 3, 2), 3. * (4 * matrix_weights(&spec) + 3 * attention) as f64);
    }
}
