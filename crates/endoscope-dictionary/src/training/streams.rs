//! Batches straight from a network.

use endoscope_net::{Inputs, Network};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::run::Stream;
use super::trainer::Examples;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluate::splice::{capturing_sites, read_sites};
use crate::matrix::Matrix;

/// Runs rows of tokens as they are needed, and mixes what the sites hold.
///
/// Rows are shuffled anew in each epoch; a group of them is run, its vectors are shuffled and dealt out in batches, and what is
/// left of a group that fills no batch is not seen in this epoch. With `sequential` nothing is shuffled: rows come in the order
/// they are in, and their positions one after the other.
pub struct NetworkStream<'a> {
    network: &'a dyn Network,
    /// Rows of one length.
    rows: &'a [Vec<u32>],
    template: Config,
    /// How many vectors of a group are held, at least.
    pub group: usize,
    /// The first position of each row that is seen: later ones are, too.
    pub from_position: usize,
    /// Whether nothing is shuffled.
    pub sequential: bool,
    /// What is shuffled by.
    pub seed: u64,
    /// The group that is held: epoch and number.
    held: Option<((u64, u64), Examples)>,
}

impl<'a> NetworkStream<'a> {
    /// Of the sites that `template` reads (and writes, for a transcoder), on rows of one length.
    pub fn new(network: &'a dyn Network, template: &Config, rows: &'a [Vec<u32>]) -> Result<Self> {
        let length = rows.first().map_or(0, Vec::len);
        if length == 0 || rows.iter().any(|row| row.len() != length) {
            return Err(Error::Training("a stream from a network needs rows of tokens, of one length".into()));
        }
        let (group, from_position, sequential) = (1 << 15, 0, false);
        let template = template.clone();
        Ok(Self { network, rows, template, group, from_position, sequential, seed: 0, held: None })
    }

    /// How many vectors one epoch has at most.
    pub fn vectors(&self) -> usize {
        self.rows.len() * self.seen()
    }

    fn seen(&self) -> usize {
        self.rows[0].len().saturating_sub(self.from_position)
    }

    /// The vectors of group `group` of an epoch.
    fn load(&mut self, epoch: u64, group: u64, rows_per_group: usize) -> Result<&Examples> {
        let key = (epoch, group);
        if self.held.as_ref().is_none_or(|(held, _)| *held != key) {
            let mut order: Vec<usize> = (0..self.rows.len()).collect();
            let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ epoch.rotate_left(40));
            if !self.sequential {
                order.shuffle(&mut random);
            }
            let first = group as usize * rows_per_group;
            let order = &order[first..(first + rows_per_group).min(order.len())];
            let (mut input, mut target) = (Vec::new(), Vec::new());
            let (mut d_in, mut d_out) = (0, 0);
            const TOGETHER: usize = 16;
            for some in order.chunks(TOGETHER) {
                let rows: Vec<Vec<u32>> = some.iter().map(|&row| self.rows[row].clone()).collect();
                let length = rows[0].len();
                let run = self.network.run(&Inputs::tokens(rows)?, &capturing_sites(&self.template))?;
                let (x, y) = read_sites(self.network, &self.template, &run)?;
                let seen = (0..x.rows()).filter(|row| row % length >= self.from_position);
                d_in = x.columns();
                input.extend_from_slice(x.select(seen.clone()).values());
                if let Some(y) = y {
                    d_out = y.columns();
                    target.extend_from_slice(y.select(seen).values());
                }
            }
            let count = input.len() / d_in.max(1);
            let input = Matrix::new(count, d_in, input)?;
            let target = (d_out > 0).then(|| Matrix::new(count, d_out, target)).transpose()?;
            let mut mixed: Vec<usize> = (0..count).collect();
            if !self.sequential {
                mixed.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ epoch.rotate_left(40) ^ (group + 1)));
            }
            let mix = |matrix: Matrix| if self.sequential { matrix } else { matrix.select(mixed.iter().copied()) };
            self.held = Some((key, Examples { input: mix(input), target: target.map(mix) }));
        }
        match &self.held {
            Some((_, examples)) => Ok(examples),
            None => Err(Error::Training("no group is held".into())),
        }
    }
}

impl Stream for NetworkStream<'_> {
    fn batch(&mut self, number: u64, rows: usize) -> Result<Examples> {
        let seen = self.seen();
        if seen == 0 || self.vectors() < rows {
            let reason = format!("{} vectors are fewer than a batch of {rows}: give more rows", self.vectors());
            return Err(Error::Training(reason));
        }
        let rows_per_group = self.group.max(rows).div_ceil(seen).min(self.rows.len());
        // The last rows of an epoch, if they fill no group, are left for another epoch's order.
        let groups = (self.rows.len() / rows_per_group) as u64;
        let per_group = (rows_per_group * seen / rows) as u64;
        let (group, within) = (number / per_group, number % per_group);
        let (epoch, group) = (group / groups, group % groups);
        let examples = self.load(epoch, group, rows_per_group)?;
        let first = within as usize * rows;
        let part = |matrix: &Matrix| matrix.select(first..first + rows);
        Ok(Examples { input: part(&examples.input), target: examples.target.as_ref().map(part) })
    }
}
