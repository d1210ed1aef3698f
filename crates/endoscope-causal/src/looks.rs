//! Where every head looks on any prompts, by its pattern and by what it moves: previous-token, duplicate-token and induction
//! heads (Elhage et al. 2021; Olsson et al. 2022, arXiv 2209.11895), heads that rest on the first token (Xiao et al. 2023, arXiv
//! 2309.17453), and heads that look by position alone.
//!
//! A head may look at a place and take nothing from it: what it takes is the weight times the norm of what it writes for that
//! key, `pattern[q, k] |v_k W_O|` (Kobayashi et al. 2020, arXiv 2004.10102, equation 4). The weights of each query are divided by their
//! sum, so that both kinds of score are shares.

use std::ops::ControlFlow;

use candle_core::{D, Tensor};
use endoscope_net::{Capture, Change, Edit, Index, Inputs, Network, Plan, Role, SiteId, Sites};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pairs::Progress;
use crate::statistics::below;

/// Bytes of head writes that are held at once.
const WRITES: usize = 256 << 20;

/// The places of one head's attention.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeadLooks {
    /// Its layer.
    pub layer: usize,
    /// Its number in the layer.
    pub head: usize,
    /// By the pattern.
    pub pattern: Looks,
    /// By the pattern times the norm of what is written for each key.
    pub weighted: Looks,
}

/// Shares of attention, each a mean over the queries that have such a place; none where no query has.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Looks {
    /// To the token before; of queries from the third on, for which that is not the first token.
    pub previous_token: Option<f64>,
    /// To earlier occurrences of the query's own token.
    pub duplicate_token: Option<f64>,
    /// To the tokens after those occurrences.
    pub induction: Option<f64>,
    /// To the first token (BOS, where there is one); of queries from the third on.
    pub first_token: Option<f64>,
    /// To the query's own position; of queries from the second on.
    pub own_token: Option<f64>,
    /// How much of the variance of the weights the distance from query to key explains, from 0 to 1; of queries from the second
    /// on. On prompts that all repeat at one distance an induction head cannot be told from this.
    pub positional: Option<f64>,
}

impl Looks {
    /// The names and values, in the order of reports.
    pub fn named(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("previous token", self.previous_token),
            ("duplicate token", self.duplicate_token),
            ("induction", self.induction),
            ("first token", self.first_token),
            ("own token", self.own_token),
            ("positional", self.positional),
        ]
    }
}

/// What every head does, and what a head that looks everywhere alike would score on the same prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AllLooks {
    /// The heads, layer by layer.
    pub heads: Vec<HeadLooks>,
    /// The control: uniform attention to all tokens up to the query.
    pub uniform: Looks,
}

/// Scores every head on prompts of any lengths. `watch` hears of the prompts done, and may end it.
pub fn head_looks(
    network: &dyn Network,
    rows: &[Vec<u32>],
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<AllLooks> {
    let layers = Layer::all(network.sites())?;
    if rows.iter().all(|row| row.len() < 3) {
        return Err(Error::Sweep(
            "heads need a prompt of at least 3 tokens: shorter ones leave nothing to choose".into(),
        ));
    }
    let mut sums: Vec<Vec<[Sums; 2]>> = vec![Vec::new(); layers.len()];
    let mut uniform = Sums::default();
    for (before, row) in rows.iter().enumerate() {
        let places = Places::of(row);
        places.add(&mut uniform, |query| vec![1. / (query + 1) as f64; query + 1]);
        let (patterns, norms) = patterns_and_norms(network, &layers, row)?;
        for ((pattern, norms), sums) in patterns.iter().zip(&norms).zip(&mut sums) {
            sums.resize(pattern.len(), <[Sums; 2]>::default());
            for ((pattern, norms), [plain, weighted]) in pattern.iter().zip(norms).zip(sums.iter_mut()) {
                places.add(plain, |query| pattern[query][..=query].iter().map(|&weight| f64::from(weight)).collect());
                places.add(weighted, |query| {
                    let moved = pattern[query][..=query].iter().zip(norms);
                    let moved: Vec<f64> = moved.map(|(&weight, &norm)| f64::from(weight) * f64::from(norm)).collect();
                    let total: f64 = moved.iter().sum();
                    moved.into_iter().map(|moved| if total > 0. { moved / total } else { 0. }).collect()
                });
            }
        }
        if watch(Progress { done: before + 1, total: rows.len() }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let looks = |(layer, sums): (&Layer, Vec<[Sums; 2]>)| {
        let number = layer.number;
        let heads = sums.into_iter().enumerate();
        heads.map(move |(head, [plain, weighted])| HeadLooks {
            layer: number,
            head,
            pattern: plain.looks(),
            weighted: weighted.looks(),
        })
    };
    Ok(AllLooks { heads: layers.iter().zip(sums).flat_map(looks).collect(), uniform: uniform.looks() })
}

/// Prompts on which heads of every kind show: `prefix`, then some tokens drawn from `vocabulary` without repetition, then the same
/// again. The period changes from row to row (`period`, `period + 1` …, over a quarter of it), so that a head that follows tokens is told
/// from one that looks a fixed way back.
pub fn repeated_tokens(
    vocabulary: &[u32],
    prefix: &[u32],
    rows: usize,
    period: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let periods = period / 4 + 1;
    if period < 2 || vocabulary.len() < period + periods - 1 {
        return Err(Error::Sweep(format!(
            "a period is at least 2, and its tokens are all different; {period} of {} tokens is not possible",
            vocabulary.len()
        )));
    }
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let row = |number: usize| {
        let mut drawn = Vec::with_capacity(period + periods);
        while drawn.len() < period + number % periods {
            let token = vocabulary[below(&mut generator, vocabulary.len())];
            if !drawn.contains(&token) {
                drawn.push(token);
            }
        }
        [prefix, &drawn[..], &drawn[..]].concat()
    };
    Ok((0..rows).map(row).collect())
}

/// The sites of one layer's attention.
struct Layer {
    number: usize,
    pattern: String,
    result: String,
    /// What is added to the residual stream.
    out: String,
}

impl Layer {
    fn all(sites: &Sites) -> Result<Vec<Self>> {
        let patterns = (0..sites.len()).map(|id| sites.get(SiteId(id))).filter_map(|site| {
            let before = site.name.strip_suffix("attn.hook_pattern").filter(|_| site.role == Role::Attention)?;
            Some((site.layer?, before.to_string(), site.name.clone()))
        });
        let layer = |(number, before, pattern): (usize, String, String)| {
            let find = |name: String| sites.resolve_one(&name).map(|id| sites.get(id).name.clone());
            let (result, out) = (find(format!("{before}attn.hook_result"))?, find(format!("{before}hook_attn_out"))?);
            Ok(Self { number, pattern, result, out })
        };
        let layers = patterns.map(layer).collect::<Result<Vec<_>>>()?;
        match layers.is_empty() {
            true => Err(Error::Sweep("this network has no attention heads".into())),
            false => Ok(layers),
        }
    }
}

/// For each layer the patterns `[head][query][key]` and the norms of what heads write for each key, `[head][key]`.
type PatternsAndNorms = (Vec<Vec<Vec<Vec<f32>>>>, Vec<Vec<Vec<f32>>>);

fn patterns_and_norms(network: &dyn Network, layers: &[Layer], row: &[u32]) -> Result<PatternsAndNorms> {
    let inputs = Inputs::tokens(vec![row.to_vec()])?;
    // Nothing reads the outputs.
    let plan = || Plan::default().outputs_at(Index::At(-1));
    let both = |plan: Plan, layer: &Layer| plan.capture(Capture::new(&layer.pattern)).capture(Capture::new(&layer.out));
    let run = network.run(&inputs, &layers.iter().fold(plan(), both))?;
    let patterns = layers.iter().map(|layer| Ok(run.captured.get(&layer.pattern)?.squeeze(0)?.to_vec3()?));
    let patterns = patterns.collect::<Result<Vec<_>>>()?;
    // Where every query looks at itself alone, a head's result at a position is what it writes for that key. What the layer adds to
    // the residual stream is put back to what it was, so that the layers above are as they were.
    let identity = Tensor::eye(row.len(), candle_core::DType::F32, &candle_core::Device::Cpu)?;
    let width = network.sites().get(network.sites().resolve_one(&layers[0].out)?).axes.last().map_or(1, |axis| {
        match axis.size {
            endoscope_net::Size::Fixed(size) => size,
            endoscope_net::Size::Input => row.len(),
        }
    });
    let heads = patterns.first().map_or(1, Vec::len);
    let together = (WRITES / (4 * heads * row.len() * width).max(1)).max(1);
    let mut norms = Vec::with_capacity(layers.len());
    for layers in layers.chunks(together) {
        let mut alone = plan();
        for layer in layers {
            let out = run.captured.get(&layer.out)?.clone();
            alone = alone
                .edit(Edit::new(&layer.pattern, Change::Set { value: identity.clone().into() }))
                .edit(Edit::new(&layer.out, Change::Patch { source: out.into() }))
                .capture(Capture::new(&layer.result));
        }
        let run = network.run(&inputs, &alone)?;
        for layer in layers {
            let writes = run.captured.get(&layer.result)?.squeeze(0)?;
            // [key, head, d] -> [head, key]
            norms.push(writes.sqr()?.sum(D::Minus1)?.sqrt()?.t()?.to_vec2()?);
        }
    }
    Ok((patterns, norms))
}

/// Where the places of a prompt are: for each query the keys of each kind.
struct Places {
    duplicates: Vec<Vec<usize>>,
    after_duplicates: Vec<Vec<usize>>,
}

impl Places {
    fn of(row: &[u32]) -> Self {
        let earlier = |query: usize| (0..query).filter(|&key| row[key] == row[query]).collect::<Vec<_>>();
        let duplicates: Vec<Vec<usize>> = (0..row.len()).map(earlier).collect();
        // The token after the last occurrence may be the query itself, which is no place to look back to.
        let after =
            |(query, keys): (usize, &Vec<usize>)| keys.iter().map(|key| key + 1).filter(|&key| key < query).collect();
        Self { after_duplicates: duplicates.iter().enumerate().map(after).collect(), duplicates }
    }

    /// Adds a prompt's weights: `weights` gives those of a query, for the keys up to it.
    fn add(&self, sums: &mut Sums, weights: impl Fn(usize) -> Vec<f64>) {
        for query in 1..self.duplicates.len() {
            let weights = weights(query);
            let of = |keys: &[usize]| keys.iter().map(|&key| weights[key]).sum::<f64>();
            sums.own_token.add(weights[query]);
            if query > 1 {
                sums.previous_token.add(weights[query - 1]);
                sums.first_token.add(weights[0]);
            }
            if !self.duplicates[query].is_empty() {
                sums.duplicate_token.add(of(&self.duplicates[query]));
            }
            if !self.after_duplicates[query].is_empty() {
                sums.induction.add(of(&self.after_duplicates[query]));
            }
            for (key, &weight) in weights.iter().enumerate() {
                sums.by_distance(query - key, weight);
            }
        }
    }
}

/// A mean in the making.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0.).then(|| self.sum / self.count)
    }
}

/// What the scores of one head are computed from.
#[derive(Debug, Clone, Default)]
struct Sums {
    previous_token: Mean,
    duplicate_token: Mean,
    induction: Mean,
    first_token: Mean,
    own_token: Mean,
    distances: Vec<Mean>,
    squares: f64,
}

impl Sums {
    fn by_distance(&mut self, distance: usize, weight: f64) {
        if self.distances.len() <= distance {
            self.distances.resize(distance + 1, Mean::default());
        }
        self.distances[distance].add(weight);
        self.squares += weight * weight;
    }

    /// The share of the weights' variance that lies between distances.
    fn positional(&self) -> Option<f64> {
        let part = |mean: &Mean| if mean.count > 0. { mean.sum * mean.sum / mean.count } else { 0. };
        let between: f64 = self.distances.iter().map(part).sum();
        let count: f64 = self.distances.iter().map(|mean| mean.count).sum();
        let total = self.distances.iter().map(|mean| mean.sum).sum::<f64>().powi(2) / count;
        let variance = self.squares - total;
        (variance > 1e-12 * self.squares).then(|| ((between - total) / variance).clamp(0., 1.))
    }

    fn looks(&self) -> Looks {
        Looks {
            previous_token: self.previous_token.get(),
            duplicate_token: self.duplicate_token.get(),
            induction: self.induction.get(),
            first_token: self.first_token.get(),
            own_token: self.own_token.get(),
            positional: self.positional(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scores of a head that looks from each query at the key that `at` says.
    fn looking(rows: &[Vec<u32>], at: impl Fn(&[u32], usize) -> usize) -> Looks {
        let mut sums = Sums::default();
        for row in rows {
            Places::of(row)
                .add(&mut sums, |query| (0..=query).map(|key| f64::from(u8::from(key == at(row, query)))).collect());
        }
        sums.looks()
    }

    fn rows() -> Vec<Vec<u32>> {
        repeated_tokens(&(10..60).collect::<Vec<_>>(), &[1], 12, 8, 3).unwrap()
    }

    #[test]
    fn hand_made_heads_score_as_they_look() {
        let occurrence = |row: &[u32], query: usize| (0..query).find(|&key| row[key] == row[query]);
        let previous = looking(&rows(), |_, query| query - 1);
        assert_eq!((previous.previous_token, previous.positional), (Some(1.), Some(1.)));
        assert_eq!(
            (previous.duplicate_token, previous.induction, previous.first_token),
            (Some(0.), Some(0.), Some(0.))
        );
        let duplicate = looking(&rows(), |row, query| occurrence(row, query).unwrap_or(0));
        assert_eq!((duplicate.duplicate_token, duplicate.induction), (Some(1.), Some(0.)));
        let induction = looking(&rows(), |row, query| occurrence(row, query).map_or(0, |key| key + 1));
        assert_eq!((induction.induction, induction.duplicate_token), (Some(1.), Some(0.)));
        // It follows tokens, whose distance changes from row to row.
        assert!(induction.positional.unwrap() < 0.6, "{induction:?}");
        let first = looking(&rows(), |_, _| 0);
        assert_eq!((first.first_token, first.previous_token), (Some(1.), Some(0.)));
        assert!(first.positional.unwrap() < 0.2);
        let own = looking(&rows(), |_, query| query);
        assert_eq!((own.own_token, own.positional, own.previous_token), (Some(1.), Some(1.), Some(0.)));
    }

    #[test]
    fn what_no_query_has_is_missing() {
        let found = looking(&[vec![5, 6, 7]], |_, query| query);
        assert_eq!((found.duplicate_token, found.induction, found.previous_token), (None, None, Some(0.)));
        // A token that follows itself has a duplicate, but nothing in between to follow.
        let found = looking(&[vec![5, 5]], |_, query| query - 1);
        assert_eq!((found.duplicate_token, found.induction, found.previous_token), (Some(1.), None, None));
    }

    #[test]
    fn repeated_tokens_repeat_with_other_periods() {
        let rows = rows();
        let lengths: Vec<usize> = rows.iter().map(Vec::len).take(4).collect();
        assert_eq!(lengths, [17, 19, 21, 17]);
        for row in &rows {
            let half = (row.len() - 1) / 2;
            assert_eq!((row[0], &row[1..=half]), (1, &row[half + 1..]));
            let distinct: std::collections::BTreeSet<u32> = row[1..=half].iter().copied().collect();
            assert_eq!(distinct.len(), half);
        }
        assert_eq!(rows, self::rows());
        let few: Vec<u32> = (0..9).collect();
        assert!(repeated_tokens(&few, &[], 1, 8, 0).is_err() && repeated_tokens(&few, &[], 1, 1, 0).is_err());
    }
}
