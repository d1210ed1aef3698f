//! Keys and values of the positions already computed.

use endoscope_kernels::attention::KeysValues;

use crate::spec::Spec;

/// The cache of one generation: per layer the keys (after rotary and edits) and values (after edits).
#[derive(Debug)]
pub struct Cache {
    pub(crate) layers: Vec<KeysValues>,
}

impl Cache {
    /// Room for `capacity` positions of one sequence.
    pub fn new(spec: &Spec, capacity: usize) -> Self {
        Self { layers: (0..spec.layers).map(|_| KeysValues::new(spec.kv_heads, spec.d_head, capacity)).collect() }
    }
}
