//! Keys and values of the positions already computed.

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;

use crate::spec::Spec;

/// The cache of one generation: per layer the keys (after rotary and edits) and values (after edits).
#[derive(Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
}

/// Keys and values `[batch, key/value head, position, d_head]` of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache(KvCache);

impl Cache {
    /// Room for `capacity` positions.
    pub fn new(spec: &Spec, capacity: usize) -> Self {
        Self { layers: (0..spec.layers).map(|_| LayerCache(KvCache::new(2, capacity))).collect() }
    }
}

impl LayerCache {
    /// Adds new keys and values and returns all of them.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        self.0.append(k, v)
    }
}
