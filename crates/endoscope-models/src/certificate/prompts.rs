//! What is run when the user names no prompts.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::text::SAMPLES;
use crate::model::Model;
use crate::tokenizer::Bos;

/// No prompt of ours is longer, but to reach beyond a window.
const LONGEST: usize = 32;
/// A wider window is not reached: all sites of a prompt that long may not fit in memory.
const WIDEST: usize = 64;
/// How many of the sample texts are run.
const TEXTS: usize = 2;
const SEED: u64 = 20_261_125;

/// Prompts for a certificate: a single token, random ids, more of them than the narrowest window is wide (up to 64 keys),
/// and sample texts where the tokenizer knows them; all as short as the context demands.
pub fn sample_prompts(model: &Model) -> Vec<Vec<u32>> {
    let spec = model.spec();
    let window = spec.windows.iter().flatten().copied().min().filter(|&window| window <= WIDEST);
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let lengths = [Some(1), Some(13), window.map(|window| window + 5)];
    let mut prompts: Vec<Vec<u32>> = lengths
        .into_iter()
        .flatten()
        .map(|length| (0..length.min(spec.context)).map(|_| random.random_range(0..spec.vocabulary as u32)).collect())
        .collect();
    if let Some(tokenizer) = &model.tokenizer {
        let unknown = tokenizer.unknown();
        let texts = SAMPLES.iter().filter_map(|text| tokenizer.encode(text, Bos::AsConfigured).ok());
        let known = texts
            .map(|encoded| encoded.ids)
            .filter(|ids| ids.iter().all(|&id| Some(id) != unknown && (id as usize) < spec.vocabulary));
        prompts.extend(known.take(TEXTS).map(|mut ids| {
            ids.truncate(LONGEST.min(spec.context));
            ids
        }));
    }
    prompts
}
