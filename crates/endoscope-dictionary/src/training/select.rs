//! Which latents of a batch take part in an update, found block by block, so that pre-activations are never held whole.

use endoscope_kernels::sparse::SparseRows;
use endoscope_kernels::{PackedMatrix, top_k_of_row};
use rayon::prelude::*;

use crate::dictionary::blocks;
use crate::error::Result;
use crate::matrix::Matrix;

/// What is looked for in each row of pre-activations.
pub(crate) enum Wanted<'a> {
    /// All that exceed `0`.
    Positive,
    /// All that exceed `least[latent]`.
    Above(&'a [f32]),
    /// The `k` largest of each row, times `scale[latent]` if given, where they are positive.
    Largest { k: usize, scale: Option<&'a [f32]> },
    /// The `k` largest of all rows together, likewise.
    LargestOfAll { k: usize, scale: Option<&'a [f32]> },
}

/// The `k` largest of each row among these latents, whatever their sign.
pub(crate) struct Dead<'a> {
    pub latents: &'a [u32],
    pub k: usize,
    pub scale: Option<&'a [f32]>,
}

/// The pre-activations that are wanted, and those of dead latents.
pub(crate) struct Selected {
    pub main: SparseRows,
    pub dead: Option<SparseRows>,
}

/// Multiplies block by block and keeps what is wanted.
pub(crate) fn select(
    input: &Matrix,
    encoder: &PackedMatrix,
    bias: &[f32],
    wanted: &Wanted<'_>,
    dead: Option<&Dead<'_>>,
) -> Result<Selected> {
    let (latents, width) = (bias.len(), input.columns());
    let mut main = SparseRows::new(latents);
    let mut dead_rows = dead.map(|_| SparseRows::new(latents));
    let mut pool = Pool::default();
    for rows in blocks(input.rows(), latents) {
        let pre = encoder.product_of_rows(&input.values()[rows.start * width..rows.end * width], bias)?;
        match wanted {
            Wanted::LargestOfAll { k, scale } => pool.add(&pre, latents, rows.start, *k, *scale),
            _ => each_row(&pre, latents, &mut main, |row, scaled| of_row(row, wanted, scaled)),
        }
        if let (Some(dead), Some(dead_rows)) = (dead, &mut dead_rows) {
            each_row(&pre, latents, dead_rows, |row, _| dead.of_row(row));
        }
    }
    if matches!(wanted, Wanted::LargestOfAll { .. }) {
        main = pool.rows(input.rows(), latents);
    }
    Ok(Selected { main, dead: dead_rows })
}

/// Adds what `choose` gives for each row, several rows at once.
fn each_row(
    pre: &[f32],
    latents: usize,
    into: &mut SparseRows,
    choose: impl Fn(&[f32], &mut Vec<f32>) -> Vec<(u32, f32)> + Sync,
) {
    let per_task = (1 << 16) / latents.max(1) + 1;
    let parts: Vec<SparseRows> = pre
        .par_chunks(per_task * latents.max(1))
        .map(|rows| {
            let mut part = SparseRows::new(latents);
            let mut scaled = Vec::new();
            rows.chunks_exact(latents.max(1)).for_each(|row| part.push(choose(row, &mut scaled)));
            part
        })
        .collect();
    parts.iter().for_each(|part| into.append(part));
}

fn of_row(row: &[f32], wanted: &Wanted<'_>, scaled: &mut Vec<f32>) -> Vec<(u32, f32)> {
    let entries = row.iter().enumerate();
    match wanted {
        Wanted::Positive => entries.filter(|&(_, &a)| a > 0.).map(|(at, &a)| (at as u32, a)).collect(),
        Wanted::Above(least) => {
            entries.zip(*least).filter(|((_, a), least)| a > least).map(|((at, &a), _)| (at as u32, a)).collect()
        }
        Wanted::Largest { k, scale } => {
            let top = match scale {
                None => top_k_of_row(row, *k),
                Some(scale) => {
                    scaled.clear();
                    scaled.extend(row.iter().zip(*scale).map(|(a, scale)| a * scale));
                    top_k_of_row(scaled, *k)
                }
            };
            let mut top: Vec<(u32, f32)> =
                top.into_iter().filter(|&(value, _)| value > 0.).map(|(_, at)| (at, row[at as usize])).collect();
            top.sort_unstable_by_key(|&(at, _)| at);
            top
        }
        Wanted::LargestOfAll { .. } => Vec::new(),
    }
}

impl Dead<'_> {
    fn of_row(&self, row: &[f32]) -> Vec<(u32, f32)> {
        let scale = |at: u32| self.scale.map_or(1., |scale| scale[at as usize]);
        let values: Vec<f32> = self.latents.iter().map(|&at| row[at as usize] * scale(at)).collect();
        let mut top: Vec<(u32, f32)> = top_k_of_row(&values, self.k)
            .into_iter()
            .map(|(_, number)| self.latents[number as usize])
            .map(|at| (at, row[at as usize]))
            .collect();
        top.sort_unstable_by_key(|&(at, _)| at);
        top
    }
}

/// A latent of a row, with what it is compared by.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    compared: f32,
    row: u32,
    latent: u32,
    pre: f32,
}

/// The largest of all rows so far: whatever exceeds the least of them, cut back when there are twice as many.
#[derive(Debug, Default)]
struct Pool {
    candidates: Vec<Candidate>,
    k: usize,
    least: f32,
}

impl Pool {
    fn add(&mut self, pre: &[f32], latents: usize, first: usize, k: usize, scale: Option<&[f32]>) {
        self.k = k;
        // Few rows at a time, so that the bar rises soon.
        let per_task = (1 << 16) / latents.max(1) + 1;
        let tasks = pre.chunks(per_task * latents.max(1)).collect::<Vec<_>>();
        for (number, group) in tasks.chunks(2 * rayon::current_num_threads().max(1)).enumerate() {
            let least = self.least;
            let before = number * 2 * rayon::current_num_threads().max(1) * per_task;
            let found: Vec<Vec<Candidate>> = group
                .par_iter()
                .enumerate()
                .map(|(task, rows)| {
                    let mut found = Vec::new();
                    for (row, pre) in rows.chunks_exact(latents.max(1)).enumerate() {
                        let row = (first + before + task * per_task + row) as u32;
                        let compared = |at: usize| pre[at] * scale.map_or(1., |scale| scale[at]);
                        let larger = (0..latents).map(|at| (at, compared(at))).filter(|&(_, value)| value > least);
                        found.extend(larger.map(|(at, compared)| Candidate {
                            compared,
                            row,
                            latent: at as u32,
                            pre: pre[at],
                        }));
                    }
                    found
                })
                .collect();
            found.into_iter().for_each(|found| self.candidates.extend(found));
            if self.candidates.len() > 2 * k {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.candidates.len() > self.k && self.k > 0 {
            let order = |a: &Candidate, b: &Candidate| {
                b.compared.total_cmp(&a.compared).then((a.row, a.latent).cmp(&(b.row, b.latent)))
            };
            self.candidates.select_nth_unstable_by(self.k - 1, order);
            self.candidates.truncate(self.k);
            self.least = self.candidates[self.k - 1].compared;
        } else if self.k == 0 {
            self.candidates.clear();
        }
    }

    fn rows(mut self, rows: usize, latents: usize) -> SparseRows {
        self.cut();
        self.candidates.sort_unstable_by_key(|candidate| (candidate.row, candidate.latent));
        let mut all = SparseRows::new(latents);
        let mut rest = self.candidates.as_slice();
        for row in 0..rows as u32 {
            let (these, others) = rest.split_at(rest.partition_point(|candidate| candidate.row == row));
            all.push(these.iter().map(|candidate| (candidate.latent, candidate.pre)));
            rest = others;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::pack;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_largest_of_all_rows_are_found(
            values in prop::collection::vec(-6i32..7, 1..400), latents in 1usize..9, k in 0usize..60, scaled in any::<bool>(),
        ) {
            let rows = values.len() / latents;
            let values: Vec<f32> = values[..rows * latents].iter().map(|&x| x as f32).collect();
            let scale: Vec<f32> = (0..latents).map(|at| 1. + (at % 3) as f32).collect();
            // An encoder that reads each dimension as it is.
            let mut eye = Matrix::zeros(latents, latents);
            (0..latents).for_each(|at| eye.row_mut(at)[at] = 1.);
            let input = Matrix::new(rows, latents, values.clone()).unwrap();
            let scale = scaled.then_some(scale.as_slice());
            let wanted = Wanted::LargestOfAll { k, scale };
            let found = select(&input, &pack(eye.values(), latents).unwrap(), &vec![0.; latents], &wanted, None).unwrap().main;
            let mut all: Vec<(f32, usize)> = (0..values.len())
                .map(|at| (values[at] * scale.map_or(1., |scale| scale[at % latents]), at))
                .filter(|&(value, _)| value > 0.)
                .collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(k);
            let mut expected = vec![0.; values.len()];
            all.iter().for_each(|&(_, at)| expected[at] = values[at]);
            prop_assert_eq!(found.dense(), expected);
        }
    }
}
