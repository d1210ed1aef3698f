//! Vectors of a site, token by token, and dictionaries trained on them.

use endoscope_dictionary::training::{Examples, Settings, Trainer};
use endoscope_dictionary::{Config, Dictionary, Matrix};
use endoscope_net::{Capture, Inputs, Network, Padding, Plan};
use endoscope_train::generator;
use rand::seq::SliceRandom;

use crate::error::Result;

/// How many rows of tokens run together.
const TOGETHER: usize = 64;
/// From about how many vectors scales and biases are estimated.
const SAMPLE: usize = 8192;

/// What a site holds for each row of tokens: `[tokens, width]`. Rows may differ in length.
pub(crate) fn vectors(network: &dyn Network, site: &str, rows: &[Vec<u32>]) -> Result<Vec<Matrix>> {
    let name = &network.sites().get(network.sites().resolve_one(site)?).name;
    let plan = Plan::default().capture(Capture::new(name.as_str()));
    let mut all = Vec::with_capacity(rows.len());
    for some in rows.chunks(TOGETHER) {
        let run = network.run(&Inputs::padded(some.to_vec(), Padding::Right)?, &plan)?;
        let captured = Matrix::from_tensor(&run.captured.get(name)?.contiguous()?)?;
        // The shorter rows are filled up behind.
        let longest = captured.rows() / some.len();
        let of_row =
            |(number, row): (usize, &Vec<u32>)| captured.select((0..row.len()).map(|at| number * longest + at));
        all.extend(some.iter().enumerate().map(of_row));
    }
    Ok(all)
}

/// All rows of these, one below the other.
pub(crate) fn joined(parts: &[Matrix]) -> Result<Matrix> {
    let width = parts.first().map_or(0, Matrix::columns);
    let values = parts.iter().flat_map(|part| part.values().iter().copied()).collect();
    Ok(Matrix::new(parts.iter().map(Matrix::rows).sum(), width, values)?)
}

/// The order in which a dictionary sees vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One after the other, always from the first.
    AsTheyAre,
    /// Shuffled anew each time that all were seen.
    Shuffled,
}

/// A dictionary of a site, trained on `pool`: update after update sees as many further vectors as `sizes` says, from
/// the start again when all sizes were used. The sizes must not be more than the vectors together.
pub(crate) fn trained(
    settings: &Settings,
    site: &str,
    (pool, order): (&Matrix, Order),
    sizes: &[usize],
) -> Result<Dictionary> {
    let template = Config { sites: vec![site.into()], ..Config::default() };
    let sample = pool.select((0..pool.rows()).step_by((pool.rows() / SAMPLE).max(1)));
    let mut trainer = Trainer::new(settings.clone(), template, &Examples { input: sample, target: None })?;
    let mut places: Vec<usize> = (0..pool.rows()).collect();
    let mut epoch = 0;
    while !trainer.is_finished() {
        if order == Order::Shuffled {
            places.shuffle(&mut generator(settings.seed, epoch));
        }
        epoch += 1;
        let mut left = places.iter().copied();
        for &size in sizes {
            if trainer.is_finished() {
                break;
            }
            let input = pool.select(left.by_ref().take(size));
            // An empty batch is an error of the trainer, so that this ends.
            trainer.update(&Examples { input, target: None })?;
        }
        if sizes.is_empty() {
            break;
        }
    }
    Ok(trainer.dictionary()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Lab, Level};
    use endoscope_dictionary::training::{NetworkStream, Objective, Stream};

    #[test]
    fn each_row_has_what_it_has_alone() {
        let organism = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap().organism("induction").unwrap();
        let rows = [vec![0, 5, 7, 5], vec![0, 9], vec![0, 4, 4, 4, 8]];
        let together = vectors(&organism.decoder, "resid_post.0", &rows).unwrap();
        for (row, found) in rows.iter().zip(&together) {
            let alone = vectors(&organism.decoder, "resid_post.0", std::slice::from_ref(row)).unwrap();
            assert_eq!(found.rows(), row.len());
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
            assert!(found.values().iter().zip(alone[0].values()).all(near));
        }
        assert_eq!(joined(&together).unwrap().rows(), 11);
    }

    /// In order, batches are those of the stream that reads a network sequentially; so are dictionaries, but for what
    /// they start from.
    #[test]
    fn in_order_means_one_after_the_other() {
        let organism = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap().organism("induction").unwrap();
        let rows: Vec<Vec<u32>> = (0..8).map(|row| vec![0, 2 + row, 5, 7 + row, 3, 2 + row]).collect();
        let pool = joined(&vectors(&organism.decoder, "blocks.0.hook_resid_post", &rows).unwrap()).unwrap();
        let template = Config { sites: vec!["blocks.0.hook_resid_post".into()], ..Config::default() };
        let mut stream = NetworkStream::new(&organism.decoder, &template, &rows).unwrap();
        (stream.sequential, stream.group) = (true, pool.rows());
        for number in 0..4 {
            let first = number as usize * 12;
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
            let batch = stream.batch(number, 12).unwrap().input;
            assert!(batch.values().iter().zip(pool.select(first..first + 12).values()).all(near));
        }
        let settings = Settings {
            objective: Objective::TopK { k: 2, dead: 0., by_decoder_norm: true },
            latents: 16,
            steps: 6,
            batch: 12,
            ..Settings::default()
        };
        let with = |order, sizes: &[usize]| trained(&settings, "resid_post.0", (&pool, order), sizes).unwrap();
        let ordered = with(Order::AsTheyAre, &[12; 4]);
        assert_eq!(ordered, with(Order::AsTheyAre, &[12; 4]));
        assert_ne!(ordered, with(Order::Shuffled, &[12; 4]));
        assert!(trained(&settings, "resid_post.0", (&pool, Order::AsTheyAre), &[48, 12]).is_err());
    }
}
