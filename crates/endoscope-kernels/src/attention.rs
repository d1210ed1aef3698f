//! Causal attention without a matrix of all scores: a few queries at a time against packed keys and values.
//!
//! Keys and values are kept as panels ([`KeysValues`]), which grow as a model generates, and of which a branch of a
//! sweep reads the first positions and adds its own. Scores, softmax and mixing are the same chains of operations
//! whether they run fused ([`attention`]) or one after the other ([`scores`], [`crate::softmax`], [`mix`]), so reading a
//! pattern changes no bit; and a query's bits do not depend on the queries computed with it.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::soft_cap::capped;
use crate::softmax::softmax_row;
use crate::tile::{HALF, Line, PANEL, ROWS, Rows, Shared, Singles, Sums, tile};

/// How many multiply-adds one thread does alone: fewer are not worth waking another.
const ALONE: usize = 1 << 17;

/// The keys and values of one sequence at its first positions.
#[derive(Debug, Clone, Default)]
pub struct KeysValues {
    heads: usize,
    d_head: usize,
    length: usize,
    /// In panels of positions; both stores have room for as many.
    room: usize,
    /// `[head, panel of positions, d_head]`, rows of two lines.
    keys: Vec<Line<f32>>,
    /// `[head, panel of d_head, position]`, rows of two lines.
    values: Vec<Line<f32>>,
}

impl KeysValues {
    /// An empty store for `heads` key/value heads of size `d_head` with room for `positions`.
    pub fn new(heads: usize, d_head: usize, positions: usize) -> Self {
        let mut new = Self { heads, d_head, ..Self::default() };
        new.reserve(positions);
        new
    }

    /// How many positions are kept.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.keys.as_slice()) + size_of_val(self.values.as_slice())
    }

    fn value_panels(&self) -> usize {
        self.d_head.div_ceil(PANEL)
    }

    /// Makes room for `positions` in all.
    fn reserve(&mut self, positions: usize) {
        let room = positions.div_ceil(PANEL);
        if room <= self.room {
            return;
        }
        let empty = Line([0.; HALF]);
        let panels = self.value_panels();
        let mut keys = vec![empty; self.heads * room * self.d_head * 2];
        let mut values = vec![empty; self.heads * panels * room * PANEL * 2];
        if self.room > 0 {
            let (old, new) = (self.room * self.d_head * 2, room * self.d_head * 2);
            for (new, old) in keys.chunks_exact_mut(new.max(1)).zip(self.keys.chunks_exact(old.max(1))) {
                new[..old.len()].copy_from_slice(old);
            }
            let (old, new) = (self.room * PANEL * 2, room * PANEL * 2);
            for (new, old) in values.chunks_exact_mut(new).zip(self.values.chunks_exact(old)) {
                new[..old.len()].copy_from_slice(old);
            }
        }
        (self.keys, self.values, self.room) = (keys, values, room);
    }

    /// Adds positions: `keys` and `values` are rows `[position, head, d_head]`.
    ///
    /// # Panics
    /// If they are not of one length that divides into positions.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let width = self.heads * self.d_head;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width.max(1)), "keys do not fit their store");
        let new = keys.len() / width.max(1);
        if self.length + new > self.room * PANEL {
            // Twice the room, so that a long generation copies each position a few times at most.
            self.reserve((self.length + new).max(2 * self.room * PANEL));
        }
        let panels = self.value_panels();
        for (row, (keys, values)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let at = self.length + row;
            let (panel, half, lane) = (at / PANEL, at % PANEL / HALF, at % HALF);
            for (head, (keys, values)) in
                keys.chunks_exact(self.d_head).zip(values.chunks_exact(self.d_head)).enumerate()
            {
                let first = (head * self.room + panel) * self.d_head;
                for (i, &key) in keys.iter().enumerate() {
                    self.keys[2 * (first + i) + half].0[lane] = key;
                }
                for (panel, values) in values.chunks(PANEL).enumerate() {
                    let line = 2 * ((head * panels + panel) * self.room * PANEL + at);
                    for (half, values) in values.chunks(HALF).enumerate() {
                        self.values[line + half].0[..values.len()].copy_from_slice(values);
                    }
                }
            }
        }
        self.length += new;
    }

    /// One panel of a head's keys: `d_head` rows.
    fn keys(&self, head: usize, panel: usize) -> Singles<'_> {
        let first = (head * self.room + panel) * self.d_head;
        Singles(&self.keys[2 * first..2 * (first + self.d_head)])
    }

    /// One panel of a head's values at some positions.
    fn values(&self, head: usize, panel: usize, positions: Range<usize>) -> Singles<'_> {
        let first = (head * self.value_panels() + panel) * self.room * PANEL;
        Singles(&self.values[2 * (first + positions.start)..2 * (first + positions.end)])
    }
}

/// Queries of one sequence and the keys that they see: the first positions of `past`, then all of `own`.
///
/// The queries are the last positions of `own`; each sees what is not after it.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The first query's row.
    pub first: usize,
    /// How many queries.
    pub queries: usize,
    /// Another run's keys and values, and how many of its positions come before `own`.
    pub past: Option<(&'a KeysValues, usize)>,
    /// This run's own.
    pub own: &'a KeysValues,
}

impl Span<'_> {
    /// How many positions come from another run.
    fn before(&self) -> usize {
        self.past.map_or(0, |(_, before)| before)
    }

    /// How many keys there are in all.
    pub fn keys(&self) -> usize {
        self.before() + self.own.length
    }

    /// How many keys the query `at` sees.
    fn seen(&self, at: usize) -> usize {
        self.keys() - self.queries + at + 1
    }

    fn check(&self, heads: Heads<'_>, q: &[f32]) {
        let width = heads.queries * heads.d_head;
        assert!(
            heads.key_bias.is_empty() || heads.key_bias.len() >= heads.queries * self.keys(),
            "keys without a bias"
        );
        assert!((self.first + self.queries) * width <= q.len(), "queries out of range");
        assert!(self.queries <= self.own.length, "queries are positions of their own keys");
        if let Some((past, before)) = self.past {
            assert!(before <= past.length, "the past is too short");
            assert!(past.heads == self.own.heads && past.d_head == self.own.d_head, "the past has another shape");
        }
    }
}

/// The shape of the heads, and how scores are made of products.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Query heads; as many of them as key/value heads divide into share one, neighbours together.
    pub queries: usize,
    /// Key/value heads.
    pub keys: usize,
    /// The size of a head.
    pub d_head: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// What bounds them then: `cap tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// What is added then, by head and key: rows of one length for each query head; empty = nothing.
    pub key_bias: &'a [f32],
    /// How many keys a query sees, itself and those just before it.
    pub window: Option<usize>,
}

impl<'a> Heads<'a> {
    /// Heads whose scores are scaled products.
    pub const fn plain(queries: usize, keys: usize, d_head: usize, scale: f32) -> Self {
        Self { queries, keys, d_head, scale, soft_cap: None, key_bias: &[], window: None }
    }

    /// The key/value head of a query head.
    fn shared(&self, head: usize) -> usize {
        head / (self.queries / self.keys.max(1)).max(1)
    }

    /// How many of `seen` keys lie before a query's window.
    fn hidden(&self, seen: usize) -> usize {
        self.window.map_or(0, |window| seen.saturating_sub(window))
    }

    /// The bias of each key for a head.
    fn bias(&self, head: usize) -> &'a [f32] {
        let length = self.key_bias.len() / self.queries.max(1);
        &self.key_bias[head * length..][..length]
    }
}

/// Some queries of one head in one span, and the scores that they make.
struct Block<'a> {
    heads: Heads<'a>,
    span: &'a Span<'a>,
    head: usize,
    /// The first query, counted in its span.
    at: usize,
    rows: usize,
}

impl Block<'_> {
    /// The most keys that one of its queries sees.
    fn seen(&self) -> usize {
        self.span.seen(self.at + self.rows - 1)
    }

    /// Scores, rows `stride` apart, of the keys up to the last that is seen (and some numbers after it); minus infinity
    /// where a key lies before the window.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, q: &[f32], scores: &mut [f32], stride: usize) {
        let Self { heads, span, head, at, rows } = self;
        let width = heads.queries * heads.d_head;
        let q = Rows::new(q, width).from(span.first + at, head * heads.d_head);
        let (shared, before, seen) = (heads.shared(*head), span.before(), self.seen());
        assert!(before.max(seen) + PANEL <= stride && rows * stride <= scores.len(), "scores out of range");
        let start = scores.as_mut_ptr();
        let into = |key: usize| Sums { start: start.wrapping_add(key), stride, resume: false };
        if let Some((past, _)) = span.past {
            for panel in 0..before.div_ceil(PANEL) {
                // SAFETY: `panel * PANEL + PANEL <= before + PANEL <= stride`, and all rows fit `scores`.
                #[expect(unsafe_code, reason = "tiles overlap: what lies after the past is overwritten next")]
                unsafe {
                    tile(simd, *rows, q, past.keys(shared, panel), into(panel * PANEL));
                }
            }
        }
        for panel in 0..(seen - before.min(seen)).div_ceil(PANEL) {
            // SAFETY: `before + panel * PANEL + PANEL <= seen + PANEL <= stride`, and all rows fit `scores`.
            #[expect(unsafe_code, reason = "as above")]
            unsafe {
                tile(simd, *rows, q, span.own.keys(shared, panel), into(before + panel * PANEL));
            }
        }
        let bias = heads.bias(*head);
        for row in 0..*rows {
            let hidden = heads.hidden(span.seen(at + row));
            let row = &mut scores[row * stride..][..seen];
            for score in &mut *row {
                *score *= heads.scale;
            }
            if let Some(cap) = heads.soft_cap {
                row.iter_mut().for_each(|score| *score = capped(*score, cap));
            }
            row.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
            row[..hidden.min(seen)].fill(f32::NEG_INFINITY);
        }
    }

    /// Writes the values mixed by `pattern`, rows `stride` apart with a weight for each of `keys` keys.
    #[inline(always)]
    fn mix<S: Simd>(&self, simd: S, pattern: &[f32], stride: usize, keys: usize, z: Shared) {
        let Self { heads, span, head, at, rows } = self;
        let (shared, before) = (heads.shared(*head), span.before().min(keys));
        let pattern = Rows::new(pattern, stride);
        for panel in 0..heads.d_head.div_ceil(PANEL) {
            let mut mixed = [[0f32; PANEL]; ROWS];
            let start = mixed.as_mut_ptr().cast::<f32>();
            // SAFETY: `mixed` has ROWS rows of PANEL values, and no block has more rows.
            #[expect(unsafe_code, reason = "the tile writes to a pointer")]
            unsafe {
                if let Some((past, _)) = span.past {
                    let past = past.values(shared, panel, 0..before);
                    tile(simd, *rows, pattern, past, Sums { start, stride: PANEL, resume: false });
                }
                let own = span.own.values(shared, panel, 0..keys - before);
                let resume = span.past.is_some();
                tile(simd, *rows, pattern.from(0, before), own, Sums { start, stride: PANEL, resume });
            }
            let size = (heads.d_head - panel * PANEL).min(PANEL);
            for (row, mixed) in mixed.iter().enumerate().take(*rows) {
                let cell = ((span.first + at + row) * heads.queries + head) * heads.d_head + panel * PANEL;
                // SAFETY: these cells of this query and head are this task's alone, and lie within the output, whose
                // rows are the queries'.
                #[expect(unsafe_code, reason = "tasks write different heads of one row")]
                unsafe {
                    z.write(cell, &mixed[..size]);
                }
            }
        }
    }
}

/// What one task computes: a head of a span.
struct Task<'a, F> {
    heads: Heads<'a>,
    span: &'a Span<'a>,
    head: usize,
    each: F,
}

/// What is done with each block of a task.
trait Each {
    fn block<S: Simd>(&mut self, simd: S, block: Block<'_>);
}

impl<F: Each> WithSimd for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { heads, span, head, mut each } = self;
        for at in (0..span.queries).step_by(ROWS) {
            each.block(simd, Block { heads, span, head, at, rows: (span.queries - at).min(ROWS) });
        }
    }
}

/// Runs `task` for each head of each span, on several threads where there is enough to do.
fn for_each_head(spans: &[Span<'_>], heads: Heads<'_>, task: impl Fn(&Span<'_>, usize) + Sync) {
    let work: usize = spans.iter().map(|span| span.queries * span.keys() * heads.queries * heads.d_head).sum();
    let one = |at: usize| task(&spans[at / heads.queries], at % heads.queries);
    let tasks = spans.len() * heads.queries;
    if work < ALONE || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(one);
    } else {
        (0..tasks).into_par_iter().for_each(one);
    }
}

/// Attention of queries `[row, head, d_head]`: the mixed values `z` of the same shape, for the rows of `spans` (which
/// must be all rows, each once).
///
/// # Panics
/// If spans, keys and queries do not fit each other.
pub fn attention(q: &[f32], spans: &[Span<'_>], heads: Heads<'_>) -> Vec<f32> {
    struct Fused<'a> {
        q: &'a [f32],
        z: Shared,
        scores: Vec<f32>,
        stride: usize,
    }
    impl Each for Fused<'_> {
        #[inline(always)]
        fn block<S: Simd>(&mut self, simd: S, block: Block<'_>) {
            let (scores, stride) = (&mut self.scores, self.stride);
            block.scores(simd, self.q, scores, stride);
            let keys = block.seen();
            for row in 0..block.rows {
                let seen = block.span.seen(block.at + row);
                let row = &mut scores[row * stride..][..keys];
                softmax_row(&mut row[..seen]);
                row[seen..].fill(0.);
            }
            block.mix(simd, scores, stride, keys, self.z);
        }
    }
    let width = heads.queries * heads.d_head;
    spans.iter().for_each(|span| span.check(heads, q));
    let rows: usize = spans.iter().map(|span| span.queries).sum();
    assert_eq!(rows * width, q.len(), "spans must cover all queries");
    let mut z = vec![0.; q.len()];
    let whole = Shared::new(&mut z);
    for_each_head(spans, heads, |span, head| {
        let stride = span.keys() + PANEL;
        let scores = vec![0.; ROWS.min(span.queries) * stride];
        let each = Fused { q, z: whole, scores, stride };
        pulp::Arch::new().dispatch(Task { heads, span, head, each });
    });
    z
}

/// The scores of one span: `[head, query, key]`, minus infinity where a key lies after its query or before its window.
///
/// # Panics
/// As [`attention`].
pub fn scores(q: &[f32], span: &Span<'_>, heads: Heads<'_>) -> Vec<f32> {
    struct Kept<'a> {
        q: &'a [f32],
        scores: Vec<f32>,
        stride: usize,
        all: Shared,
    }
    impl Each for Kept<'_> {
        #[inline(always)]
        fn block<S: Simd>(&mut self, simd: S, block: Block<'_>) {
            block.scores(simd, self.q, &mut self.scores, self.stride);
            for row in 0..block.rows {
                let (query, keys) = (block.at + row, block.span.keys());
                let row = &mut self.scores[row * self.stride..][..keys];
                row[block.span.seen(query)..].fill(f32::NEG_INFINITY);
                // SAFETY: this row of this head is this task's alone, and lies within `[head, query, key]`.
                #[expect(unsafe_code, reason = "tasks write different heads of one tensor")]
                unsafe {
                    self.all.write((block.head * block.span.queries + query) * keys, row);
                }
            }
        }
    }
    span.check(heads, q);
    let mut all = vec![0.; heads.queries * span.queries * span.keys()];
    let whole = Shared::new(&mut all);
    for_each_head(std::slice::from_ref(span), heads, |span, head| {
        let stride = span.keys() + PANEL;
        let scores = vec![0.; ROWS.min(span.queries) * stride];
        let each = Kept { q, scores, stride, all: whole };
        pulp::Arch::new().dispatch(Task { heads, span, head, each });
    });
    all
}

/// The values of one span mixed by `pattern` `[head, query, key]`: `z` `[query, head, d_head]`.
///
/// # Panics
/// If the pattern does not fit the span.
pub fn mix(pattern: &[f32], span: &Span<'_>, heads: Heads<'_>) -> Vec<f32> {
    struct Mixed<'a> {
        pattern: &'a [f32],
        z: Shared,
    }
    impl Each for Mixed<'_> {
        #[inline(always)]
        fn block<S: Simd>(&mut self, simd: S, block: Block<'_>) {
            let keys = block.span.keys();
            let first = (block.head * block.span.queries + block.at) * keys;
            block.mix(simd, &self.pattern[first..][..block.rows * keys], keys, keys, self.z);
        }
    }
    let span = &Span { first: 0, ..*span };
    assert_eq!(pattern.len(), heads.queries * span.queries * span.keys(), "the pattern does not fit its span");
    let mut z = vec![0.; span.queries * heads.queries * heads.d_head];
    span.check(heads, &z);
    let whole = Shared::new(&mut z);
    for_each_head(std::slice::from_ref(span), heads, |span, head| {
        pulp::Arch::new().dispatch(Task { heads, span, head, each: Mixed { pattern, z: whole } });
    });
    z
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{floats, random};
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    fn same(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
    }

    /// Attention in f64, query by query.
    fn reference(q: &[f32], k: &[f32], v: &[f32], offset: usize, heads: Heads<'_>) -> Vec<f64> {
        let Heads { queries: h, keys: g, d_head: e, scale, soft_cap, key_bias, window } = heads;
        let mut z = vec![0.; q.len()];
        for (query, q) in q.chunks_exact(h * e).enumerate() {
            for head in 0..h {
                let shared = head / (h / g);
                let dot = |key: usize| -> f64 {
                    (0..e).map(|i| f64::from(q[head * e + i]) * f64::from(k[(key * g + shared) * e + i])).sum::<f64>()
                };
                let last = offset + query;
                let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
                let score = |key: usize| {
                    let score = dot(key) * f64::from(scale);
                    let capped = soft_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh());
                    capped + key_bias.get(head * (key_bias.len() / h) + key).copied().map_or(0., f64::from)
                };
                let scores: Vec<f64> = (first..=last).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                for (key, score) in (first..).zip(&scores) {
                    let weight = (score - largest).exp() / total;
                    for i in 0..e {
                        z[(query * h + head) * e + i] += weight * f64::from(v[(key * g + shared) * e + i]);
                    }
                }
            }
        }
        z
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]
        #[test]
        fn agrees_with_f64_in_any_parts(
            length in 1usize..80, groups in 1usize..3, shared in 1usize..3, d_head in 1usize..40,
            before in 0usize..80, seed in any::<u64>(), soft_cap in prop::option::of(0.5f32..3.),
            window in prop::option::of(1usize..60), biased in any::<bool>(),
        ) {
            let bias = floats(&random((groups * shared, if biased { length } else { 0 }), seed ^ 5));
            let heads = Heads { soft_cap, window, key_bias: &bias, ..Heads::plain(groups * shared, groups, d_head, 0.1) };
            let q = floats(&random((length, heads.queries * d_head), seed));
            let (k, v) = (random((length, groups * d_head), !seed), random((length, groups * d_head), seed ^ 7));
            let (k, v) = (floats(&k), floats(&v));
            let mut all = KeysValues::new(groups, d_head, 1);
            all.append(&k, &v);
            let whole = attention(&q, &[Span { first: 0, queries: length, past: None, own: &all }], heads);
            for (z, expected) in whole.iter().zip(reference(&q, &k, &v, 0, heads)) {
                prop_assert!((f64::from(*z) - expected).abs() < 2e-5, "{z} {expected}");
            }
            // The rest of the sequence after some of its past: the same bits, cached in one store or in two.
            let before = before % length;
            let (kept, new) = (before * groups * d_head, before * heads.queries * d_head);
            let mut own = KeysValues::new(groups, d_head, length - before);
            own.append(&k[kept..], &v[kept..]);
            let queries = length - before;
            let parted = Span { first: 0, queries, past: Some((&all, before)), own: &own };
            let cached = Span { first: 0, queries, past: None, own: &all };
            for span in [parted, cached] {
                prop_assert!(same(&attention(&q[new..], &[span], heads), &whole[new..]));
                // And in steps that can be read.
                let keys = span.keys();
                let scores = scores(&q[new..], &span, heads);
                let shape = (heads.queries, queries, keys);
                let pattern = crate::softmax(&Tensor::from_vec(scores, shape, &Device::Cpu).unwrap()).unwrap();
                prop_assert!(same(&mix(&floats(&pattern), &span, heads), &whole[new..]));
            }
        }
    }

    #[test]
    fn many_spans_are_each_alone_and_growing_keeps_what_was() {
        let heads = Heads::plain(4, 2, 5, 1.);
        let lengths = [1, 13, 70, 33];
        let stores: Vec<_> = lengths
            .iter()
            .map(|&length| {
                let (k, v) = (floats(&random((length, 10), 1)), floats(&random((length, 10), 2)));
                let mut store = KeysValues::new(2, 5, 0);
                for row in 0..length {
                    store.append(&k[row * 10..][..10], &v[row * 10..][..10]);
                }
                assert_eq!(store.len(), length);
                let mut at_once = KeysValues::new(2, 5, length);
                at_once.append(&k, &v);
                (store, at_once)
            })
            .collect();
        let q = floats(&random((lengths.iter().sum::<usize>(), 20), 3));
        let mut spans = Vec::new();
        let mut alone = Vec::new();
        let mut first = 0;
        for ((store, at_once), queries) in stores.iter().zip(lengths) {
            spans.push(Span { first, queries, past: None, own: store });
            let span = Span { first: 0, queries, past: None, own: at_once };
            alone.extend(attention(&q[first * 20..][..queries * 20], &[span], heads));
            first += queries;
        }
        assert!(same(&attention(&q, &spans, heads), &alone));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        assert!(same(&pool.install(|| attention(&q, &spans, heads)), &alone));
        assert!(attention(&[], &[], heads).is_empty());
    }
}
