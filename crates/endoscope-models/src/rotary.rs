//! Rotary positions: which dimensions are paired, by what angle each pair is turned, and what long-context recipes make
//! of the angles.

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// A rotation of queries and keys (Su et al. 2021, arXiv 2104.09864): at position `p` pair `i` is turned by
/// `p base^(-2i / dims)`, as `scaling` changes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// The base of the wavelengths.
    pub base: f64,
    /// How many dimensions of a head are turned, from its first.
    pub dims: usize,
    /// Which dimensions are a pair.
    pub pairs: Pairs,
    /// What the angles become for long contexts.
    pub scaling: RotaryScaling,
}

/// Which dimensions are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairs {
    /// `i` and `i + dims / 2`.
    Halves,
    /// `2i` and `2i + 1`.
    Neighbours,
}

/// What becomes of the angles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotaryScaling {
    /// Nothing.
    None,
    /// All are divided by a factor (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: long wavelengths are divided by the factor, short ones stay, with a ramp between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original_context / low` are divided.
        low: f64,
        /// Those below `original_context / high` stay.
        high: f64,
        /// The context before it was extended.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp over the pairs between what turns fast and what turns slowly.
    Yarn {
        /// The factor of those that turn slowly.
        factor: f64,
        /// Turns over the original context from which on a pair stays.
        fast: f64,
        /// And up to which it is divided.
        slow: f64,
        /// Whether the ramp's ends are whole pairs.
        truncate: bool,
        /// The context before it was extended.
        original_context: usize,
        /// What queries and keys are multiplied by.
        attention: f64,
    },
    /// A divisor for each pair (LongRoPE: Ding et al. 2024, arXiv 2402.13753; and files that hold them as a tensor).
    Factors {
        /// The divisors.
        factors: Vec<f64>,
        /// What queries and keys are multiplied by.
        attention: f64,
    },
}

impl Rotary {
    /// The plain rotation of whole heads, halves paired.
    pub fn plain(base: f64, d_head: usize) -> Self {
        Self { base, dims: d_head, pairs: Pairs::Halves, scaling: RotaryScaling::None }
    }

    /// What makes no sense for heads of width `d_head`.
    pub fn problems(&self, d_head: usize) -> Vec<String> {
        let mut problems = Vec::new();
        let mut positive = |name: &str, value: f64| {
            if !(value > 0. && value.is_finite()) {
                problems.push(format!("{name} is {value}; it must be positive"));
            }
        };
        positive("the rotary base", self.base);
        match &self.scaling {
            RotaryScaling::None => {}
            RotaryScaling::Linear { factor } => positive("the rotary factor", *factor),
            RotaryScaling::Llama3 { factor, low, high, .. } => {
                positive("the rotary factor", *factor);
                positive("low_freq_factor", *low);
                positive("high_freq_factor less low_freq_factor", high - low);
            }
            RotaryScaling::Yarn { factor, fast, slow, attention, .. } => {
                positive("the rotary factor", *factor);
                positive("beta_fast", *fast);
                positive("beta_slow", *slow);
                positive("the attention factor", *attention);
            }
            RotaryScaling::Factors { factors, attention } => {
                factors.iter().for_each(|&factor| positive("a rotary factor", factor));
                positive("the attention factor", *attention);
                if factors.len() != self.dims / 2 {
                    problems.push(format!("{} rotary factors do not fit {} pairs", factors.len(), self.dims / 2));
                }
            }
        }
        if !self.dims.is_multiple_of(2) || self.dims == 0 || self.dims > d_head {
            problems.push(format!("{} rotary dimensions of {d_head} make no pairs", self.dims));
        }
        problems
    }

    /// The angle of each pair per position, in f32 as the reference implementations compute it.
    fn frequencies(&self) -> Vec<f32> {
        let dims = self.dims;
        let plain = (0..dims / 2).map(|i| 1. / (self.base as f32).powf((2 * i) as f32 / dims as f32));
        match &self.scaling {
            RotaryScaling::None => plain.collect(),
            RotaryScaling::Linear { factor } => plain.map(|frequency| frequency / *factor as f32).collect(),
            RotaryScaling::Llama3 { factor, low, high, original_context } => plain
                .map(|frequency| {
                    let turns = *original_context as f32 / (std::f32::consts::TAU / frequency);
                    let slow = frequency / *factor as f32;
                    if turns < *low as f32 {
                        slow
                    } else if turns > *high as f32 {
                        frequency
                    } else {
                        let smooth = (turns - *low as f32) / (*high - *low) as f32;
                        (1. - smooth) * slow + smooth * frequency
                    }
                })
                .collect(),
            RotaryScaling::Yarn { factor, fast, slow, truncate, original_context, .. } => {
                // The pair that turns `turns` times over the original context.
                let pair = |turns: f64| {
                    let wavelength = *original_context as f64 / (turns * std::f64::consts::TAU);
                    dims as f64 * wavelength.ln() / (2. * self.base.ln())
                };
                let (mut first, mut last) = (pair(*fast), pair(*slow));
                if *truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                (first, last) = (first.max(0.), last.min(dims as f64 - 1.));
                if first == last {
                    last += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(i, frequency)| {
                        let slowed = ((i as f32 - first as f32) / (last - first) as f32).clamp(0., 1.);
                        frequency / *factor as f32 * slowed + frequency * (1. - slowed)
                    })
                    .collect()
            }
            RotaryScaling::Factors { factors, .. } => {
                plain.zip(factors).map(|(frequency, &factor)| frequency / factor as f32).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    fn attention(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn { attention, .. } | RotaryScaling::Factors { attention, .. } => attention,
            _ => 1.,
        }
    }
}

/// How many positions are tabulated: a config may name any context, so memory must not follow it.
const TABULATED: usize = 1 << 14;

/// Cosines and sines of the rotary angles: tabulated for the first positions, computed for later ones.
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    dims: usize,
    pairs: Pairs,
    attention: f64,
    frequencies: Tensor,
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// The angles of `rotary` for sequences of up to `context` positions.
    pub fn new(rotary: &Rotary, context: usize, device: &Device) -> Result<Self> {
        let frequencies = Tensor::from_vec(rotary.frequencies(), (1, rotary.dims / 2), device)?;
        let attention = rotary.attention();
        let (cos, sin) = cos_sin(&frequencies, attention, &(0..context.min(TABULATED)).collect::<Vec<_>>())?;
        Ok(Self { dims: rotary.dims, pairs: rotary.pairs, attention, frequencies, cos, sin })
    }

    /// Turns rows `[row, head, d_head]`, each by its position.
    pub fn rotate(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let (rows, heads, d_head) = x.dims3()?;
        let half = self.dims / 2;
        let last = positions.iter().copied().max().unwrap_or(0);
        let (cos, sin) = match last < self.cos.dim(0)? {
            true => {
                let positions: Vec<u32> = positions.iter().map(|&at| at as u32).collect();
                let positions = Tensor::from_vec(positions, rows, x.device())?;
                (self.cos.index_select(&positions, 0)?, self.sin.index_select(&positions, 0)?)
            }
            false => cos_sin(&self.frequencies, self.attention, positions)?,
        };
        let (cos, sin) = (cos.reshape((rows, 1, half))?, sin.reshape((rows, 1, half))?);
        let turned = x.narrow(2, 0, self.dims)?;
        let (first, second) = match self.pairs {
            Pairs::Halves => (turned.narrow(2, 0, half)?, turned.narrow(2, half, half)?),
            Pairs::Neighbours => {
                let pairs = turned.contiguous()?.reshape((rows, heads, half, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        let turned = match self.pairs {
            Pairs::Halves => Tensor::cat(&[turned_first, turned_second], 2)?,
            Pairs::Neighbours => Tensor::stack(&[turned_first, turned_second], 3)?.reshape((rows, heads, self.dims))?,
        };
        match self.dims == d_head {
            true => Ok(turned),
            false => Tensor::cat(&[turned, x.narrow(2, self.dims, d_head - self.dims)?], 2),
        }
    }
}

/// Cosines and sines `[position, half]` of the angles at `positions`.
fn cos_sin(frequencies: &Tensor, attention: f64, positions: &[usize]) -> Result<(Tensor, Tensor)> {
    let count = positions.len();
    let positions: Vec<f32> = positions.iter().map(|&at| at as f32).collect();
    let positions = Tensor::from_vec(positions, (count, 1), frequencies.device())?;
    let angles = positions.matmul(frequencies)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    match attention == 1. {
        true => Ok((cos, sin)),
        false => Ok(((cos * attention)?, (sin * attention)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn floats(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap()
    }

    #[test]
    fn positions_beyond_the_table_follow_the_same_formula() {
        let angles = Angles::new(&Rotary::plain(10000., 4), 1 << 28, &Device::Cpu).unwrap();
        assert_eq!(angles.cos.dim(0).unwrap(), TABULATED);
        let x = Tensor::new(&[[[1f32, 0., 0., 1.]]], &Device::Cpu).unwrap().broadcast_as((4, 1, 4)).unwrap();
        // Across the end of the table: two positions on each side.
        let from = TABULATED - 2;
        let across = angles.rotate(&x, &[from, from + 1, from + 2, from + 3]).unwrap();
        let inside = angles.rotate(&x.narrow(0, 0, 2).unwrap(), &[from, from + 1]).unwrap();
        assert_eq!(floats(&across.narrow(0, 0, 2).unwrap()), floats(&inside));
        let last = floats(&across.narrow(0, 3, 1).unwrap());
        let angle = (TABULATED + 1) as f32;
        assert!((last[0] - angle.cos()).abs() < 1e-6 && (last[2] - angle.sin()).abs() < 1e-6, "{last:?}");
    }

    #[test]
    fn neighbours_are_halves_in_another_order_and_the_rest_stays() {
        let kind = |pairs| Rotary { dims: 4, pairs, ..Rotary::plain(100., 6) };
        let turn = |pairs, x: [f32; 6]| {
            let angles = Angles::new(&kind(pairs), 8, &Device::Cpu).unwrap();
            floats(&angles.rotate(&Tensor::new(&[[x]], &Device::Cpu).unwrap(), &[3]).unwrap())
        };
        let halves = turn(Pairs::Halves, [1., 2., 3., 4., 5., 6.]);
        let neighbours = turn(Pairs::Neighbours, [1., 3., 2., 4., 5., 6.]);
        assert_eq!([0, 2, 1, 3, 4, 5].map(|i| halves[i]).as_slice(), neighbours);
        assert_eq!(halves[4..], [5., 6.]);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let check = |rotary: Rotary, part: &str| {
            let problems = rotary.problems(8).join("; ");
            assert!(problems.contains(part), "{problems}");
        };
        check(Rotary::plain(0., 8), "base");
        check(Rotary { dims: 10, ..Rotary::plain(10., 8) }, "pairs");
        check(Rotary { dims: 3, ..Rotary::plain(10., 8) }, "pairs");
        let factors = RotaryScaling::Factors { factors: vec![1.; 3], attention: 1. };
        check(Rotary { scaling: factors, ..Rotary::plain(10., 8) }, "do not fit");
        check(Rotary { scaling: RotaryScaling::Linear { factor: -1. }, ..Rotary::plain(10., 8) }, "factor");
        assert!(Rotary::plain(10., 8).problems(8).is_empty());
    }
}
