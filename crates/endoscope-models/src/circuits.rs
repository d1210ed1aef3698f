//! What heads do, in the words of Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"): QK and OV as
//! factored matrices, how much a head copies, and how much heads of later layers read of what earlier ones write.
//!
//! Norms of the stream are not part of it: fold them into the weights first ([`crate::process`]) where they matter. Rotary
//! models turn queries and keys by their distance, so what is shown of QK is the product without that rotation: what a
//! query and a key at the same position see. Biases are left out.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::factored::{Eigenvalue, Factored, Svd};
use crate::views::{WeightName, WeightView, for_each_query_head};

/// What a later head reads with of what an earlier one writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Composition {
    /// Its queries.
    Query,
    /// Its keys.
    Key,
    /// Its values.
    Value,
}

/// One head in numbers.
#[derive(Debug, Clone)]
pub struct HeadNumbers {
    /// The Frobenius norm of `W_Q W_K^T`.
    pub qk_norm: f64,
    /// The singular values of `W_Q W_K^T`, the largest first.
    pub qk_singular_values: Vec<f64>,
    /// The Frobenius norm of `W_V W_O`.
    pub ov_norm: f64,
    /// The singular values of `W_V W_O`, the largest first.
    pub ov_singular_values: Vec<f64>,
    /// The eigenvalues of `W_V W_O`, the largest magnitude first.
    pub ov_eigenvalues: Vec<Eigenvalue>,
    /// The sum of the eigenvalues of `W_E W_V W_O W_U` over the sum of their magnitudes: 1 where attending to a token
    /// raises that token's own logit in every direction, -1 where it lowers it.
    pub copying: f64,
}

/// One of the rank-one matrices `s u v^T` whose sum is what a head does, `W_V W_O`, and how a later head reads it: Merullo, Eickhoff
/// and Pavlick 2024, "Talking Heads: Understanding Inter-layer Communication in Transformer Language Models", arXiv 2406.09519.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channel {
    /// Its number, from 0 for the largest singular value.
    pub number: usize,
    /// s.
    pub singular_value: f64,
    /// The composition score of the channel alone, `|s u v^T M| / (|s u v^T| |M|) = |v^T M| / |M|` with M for what the later
    /// head reads with: the formula of the whole head, applied to the channel. Zero where s is zero, and v no direction.
    pub score: f64,
    /// Its part of the square of the head's own score, `|s v^T M|^2 / |W_V W_O M|^2`; over all channels these sum to one, since
    /// the vectors u are orthogonal. Zero where the head's score is.
    pub share: f64,
}

/// The channels of a pair of heads, the second of a later layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PairChannels {
    /// Layer and head that write.
    pub from: (usize, usize),
    /// Layer and head that read.
    pub to: (usize, usize),
    /// The composition score of the whole, as in [`Decoder::composition_scores`].
    pub score: f64,
    /// All channels in order.
    pub channels: Vec<Channel>,
}

impl PairChannels {
    /// The channels with the highest scores first.
    pub fn strongest(&self) -> Vec<Channel> {
        let mut channels = self.channels.clone();
        channels.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.number.cmp(&b.number)));
        channels
    }
}

impl Decoder {
    /// `W_Q W_K^T` of each query head: `[d, d]`, unscaled. Read it as query times key.
    pub fn qk(&self, layer: usize) -> Result<Vec<Factored>> {
        let query = self.heads_of(WeightView::Query, layer)?;
        let key = self.heads_of(WeightView::Key, layer)?;
        each_head(self.spec.heads, |head| Factored::new(&query.get(head)?, &key.get(head)?.t()?))
    }

    /// `W_V W_O` of each query head: `[d, d]`.
    pub fn ov(&self, layer: usize) -> Result<Vec<Factored>> {
        let value = self.heads_of(WeightView::Value, layer)?;
        let output = self.heads_of(WeightView::Output, layer)?;
        each_head(self.spec.heads, |head| Factored::new(&value.get(head)?, &output.get(head)?))
    }

    /// The numbers of every head, layer by layer.
    pub fn heads(&self) -> Result<Vec<Vec<HeadNumbers>>> {
        let all = |view| self.weight(WeightName { view, layer: None });
        let through_vocabulary = all(WeightView::Unembedding)?.matmul(&all(WeightView::Embedding)?)?;
        (0..self.spec.layers)
            .map(|layer| {
                let value = self.heads_of(WeightView::Value, layer)?;
                let output = self.heads_of(WeightView::Output, layer)?;
                let (qk, ov) = (self.qk(layer)?, self.ov(layer)?);
                each_head(self.spec.heads, |head| {
                    // The eigenvalues of W_E W_V W_O W_U are those of W_V (W_O W_U W_E), but for zeros.
                    let copied = Factored::new(&value.get(head)?, &output.get(head)?.matmul(&through_vocabulary)?)?;
                    Ok(HeadNumbers {
                        qk_norm: qk[head].norm(),
                        qk_singular_values: qk[head].singular_values()?,
                        ov_norm: ov[head].norm(),
                        ov_singular_values: ov[head].singular_values()?,
                        ov_eigenvalues: ov[head].eigenvalues()?,
                        copying: positivity(&copied.eigenvalues()?),
                    })
                })
            })
            .collect()
    }

    /// `[layer, head, layer, head]`: what the first head writes, read by the second, as
    /// `|W_OV W_QK| / (|W_OV| |W_QK|)` in Frobenius norms (`W_QK^T` for keys, `W_OV` for values), as TransformerLens's
    /// `all_composition_scores` has it; zero where the second head is not of a later layer, or either does nothing.
    pub fn composition_scores(&self, kind: Composition) -> Result<Tensor> {
        let (layers, heads) = (self.spec.layers, self.spec.heads);
        let mut scores = vec![0f32; (layers * heads).pow(2)];
        // Each earlier head's write [r, d] without what does not change norms, of norm 1, one below the other.
        let mut writes: Vec<Tensor> = Vec::with_capacity(layers);
        for later in 0..layers {
            let reads = Tensor::cat(&self.reads(kind, later)?, 1)?;
            for (earlier, writes) in writes.iter().enumerate() {
                let norms = block_norms(&writes.matmul(&reads)?, heads)?;
                for (at, norm) in norms.into_iter().enumerate() {
                    let (from, to) = (earlier * heads + at / heads, later * heads + at % heads);
                    scores[from * layers * heads + to] = norm;
                }
            }
            if later + 1 < layers {
                let ov = self.ov(later)?;
                let ov = each_head(heads, |head| of_norm_one(ov[head].without_left()?))?;
                writes.push(Tensor::cat(&ov, 0)?);
            }
        }
        Ok(Tensor::from_vec(scores, (layers, heads, layers, heads), &candle_core::Device::Cpu)?)
    }

    /// The channels of every pair of heads of which the second is of a later layer, in the order of pairs.
    pub fn channels(&self, kind: Composition) -> Result<Vec<PairChannels>> {
        let (layers, heads) = (self.spec.layers, self.spec.heads);
        let reads = (0..layers).map(|layer| self.reads(kind, layer)).collect::<Result<Vec<_>>>()?;
        let mut found = Vec::new();
        for earlier in 0..layers.saturating_sub(1) {
            let ov = self.ov(earlier)?;
            let writes = each_head(heads, |head| ov[head].svd())?;
            let later = (layers - earlier - 1) * heads;
            found.extend(each_head(heads * later, |pair| {
                let (from, to) = (pair / later, (earlier + 1) * heads + pair % later);
                let (score, channels) = channels(&writes[from], &reads[to / heads][to % heads])?;
                Ok(PairChannels { from: (earlier, from), to: (to / heads, to % heads), score, channels })
            })?);
        }
        Ok(found)
    }

    /// What each head of a layer reads with, `[d, r]` and of norm 1, without what does not change norms.
    fn reads(&self, kind: Composition, layer: usize) -> Result<Vec<Tensor>> {
        let reads = match kind {
            Composition::Query => self.qk(layer)?,
            Composition::Key => self.qk(layer)?.iter().map(Factored::transpose).collect(),
            Composition::Value => self.ov(layer)?,
        };
        each_head(self.spec.heads, |head| of_norm_one(reads[head].without_right()?))
    }

    /// A view of a layer, with one entry for each query head.
    fn heads_of(&self, view: WeightView, layer: usize) -> Result<Tensor> {
        for_each_query_head(&self.weight(WeightName { view, layer: Some(layer) })?, 0, self.spec.heads)
    }
}

fn each_head<T: Send>(heads: usize, f: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    (0..heads).into_par_iter().map(f).collect()
}

/// The sum of eigenvalues over the sum of their magnitudes (Elhage et al. 2021, "Detecting copying behavior").
pub fn positivity(values: &[Eigenvalue]) -> f64 {
    let magnitudes: f64 = values.iter().map(|value| value.magnitude()).sum();
    if magnitudes == 0. { 0. } else { values.iter().map(|value| value.real).sum::<f64>() / magnitudes }
}

fn of_norm_one(x: Tensor) -> Result<Tensor> {
    let norm = x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
    Ok(if norm == 0. { x } else { x.to_dtype(DType::F64)?.affine(1. / norm, 0.)?.to_dtype(DType::F32)? })
}

/// The score of what a head writes with what another reads with, `[d, r]` of norm 1 or 0, and its channels.
fn channels(write: &Svd, read: &Tensor) -> Result<(f64, Vec<Channel>)> {
    let read_of = write.right.t()?.matmul(read)?.to_dtype(DType::F64)?.sqr()?.sum(1)?.to_vec1::<f64>()?;
    // Below this a singular value is rounding.
    let rounding = write.values.first().map_or(0., |largest| largest * f64::EPSILON * write.values.len() as f64);
    let squares: Vec<f64> =
        write.values.iter().map(|value| if *value > rounding { value * value } else { 0. }).collect();
    let whole: f64 = squares.iter().zip(&read_of).map(|(square, read)| square * read).sum();
    let norm: f64 = squares.iter().sum();
    let channel = |(number, (&square, &read)): (usize, (&f64, &f64))| Channel {
        number,
        singular_value: write.values[number],
        score: if square > 0. { read.sqrt() } else { 0. },
        share: if whole > 0. { square * read / whole } else { 0. },
    };
    let score = if norm > 0. { (whole / norm).sqrt() } else { 0. };
    Ok((score, squares.iter().zip(&read_of).enumerate().map(channel).collect()))
}

/// The norm of each of `heads x heads` blocks of a matrix.
fn block_norms(x: &Tensor, heads: usize) -> Result<Vec<f32>> {
    let (rows, columns) = x.dims2()?;
    if !rows.is_multiple_of(heads) || !columns.is_multiple_of(heads) {
        return Err(Error::Factored {
            what: "composition",
            reason: format!("{rows} x {columns} has no {heads} blocks"),
        });
    }
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let (height, width) = (rows / heads, columns / heads);
    let mut sums = vec![0f64; heads * heads];
    for (row, values) in values.chunks(columns.max(1)).enumerate() {
        for (head, values) in values.chunks(width.max(1)).enumerate() {
            let squares: f32 = values.iter().map(|value| value * value).sum();
            sums[row / height * heads + head] += f64::from(squares);
        }
    }
    Ok(sums.into_iter().map(|sum| sum.sqrt() as f32).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    fn random(rows: usize, columns: usize) -> impl Strategy<Value = Tensor> {
        proptest::collection::vec(-2f32..2., rows * columns)
            .prop_map(move |values| Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap())
    }

    fn norm(x: &Tensor) -> f64 {
        x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    }

    proptest! {
        #[test]
        fn channels_together_are_the_whole(
            (write, read) in (2usize..9, 1usize..5, 1usize..5).prop_flat_map(|(d, e, r)| {
                ((random(d, e), random(e, d)), random(d, r))
            }),
        ) {
            let ov = Factored::new(&write.0, &write.1).unwrap();
            let svd = ov.svd().unwrap();
            let read = of_norm_one(read).unwrap();
            let (score, found) = channels(&svd, &read).unwrap();
            // The products of all channels add up to that of the whole.
            let mut sum = Tensor::zeros((ov.shape().0, read.dim(1).unwrap()), DType::F32, &Device::Cpu).unwrap();
            let product = ov.product().unwrap();
            for channel in &found {
                let u = svd.left.narrow(1, channel.number, 1).unwrap();
                let v = svd.right.narrow(1, channel.number, 1).unwrap().t().unwrap();
                let alone = (u.matmul(&v).unwrap() * channel.singular_value).unwrap();
                let read_of = alone.matmul(&read).unwrap();
                sum = (sum + &read_of).unwrap();
                // The same formula, applied to the channel.
                if channel.singular_value > 1e-3 * svd.values[0] {
                    prop_assert!((norm(&read_of) / norm(&alone) - channel.score).abs() < 1e-4);
                }
            }
            let whole = product.matmul(&read).unwrap();
            prop_assert!(norm(&(sum - &whole).unwrap()) <= 1e-4 * (1. + norm(&whole)));
            if norm(&product) > 1e-2 {
                prop_assert!((norm(&whole) / norm(&product) - score).abs() < 1e-4);
                prop_assert!((found.iter().map(|channel| channel.share).sum::<f64>() - 1.).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn heads_that_do_nothing_have_no_channels() {
        let zero = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
        let one = of_norm_one(Tensor::eye(4, DType::F32, &Device::Cpu).unwrap()).unwrap();
        let nothing = |write: &Tensor, read: &Tensor| {
            let (score, found) = channels(&Factored::new(write, write).unwrap().svd().unwrap(), read).unwrap();
            assert!(score == 0. && found.len() == 4);
            found.iter().map(|channel| channel.share).sum::<f64>()
        };
        assert_eq!(nothing(&zero, &one), 0.);
        assert_eq!(nothing(&one, &zero), 0.);
    }
}
