//! A network whose wires are known: two variables, the heads, neurons and directions that carry them, and idle ones.

use candle_core::{Device, Tensor};
use endoscope_causal::Triple;
use endoscope_net::*;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Of the residual stream.
pub const DIM: usize = 8;

/// Reads the tokens `[a, b, idle]`, each 0 to 3, and says `4 a + b`.
///
/// A value is two bits, each 1 or -1. At the last position heads 0.3 and 1.2 carry the bits of `a`, heads 0.1 and 1.0 those of `b`,
/// heads 0.0, 1.1 and 1.3 something of the idle token, head 0.2 nothing. The stream is their sum in turned coordinates; neurons
/// are the coordinates turned back: 2 and 5 hold `a`, 0 and 7 `b`, the others are not read. Other positions hold zeros.
pub struct Wires {
    sites: Sites,
}

/// Coordinates turned: a reflection, so orthogonal and its own inverse. Row `i` is the direction of neuron `i` in the stream.
pub fn turned() -> Tensor {
    let v: Vec<f32> = (1..=DIM).map(|x| x as f32).collect();
    let square: f32 = v.iter().map(|x| x * x).sum();
    let entry = |at: usize| f32::from(u8::from(at / DIM == at % DIM)) - 2. * v[at / DIM] * v[at % DIM] / square;
    Tensor::from_vec((0..DIM * DIM).map(entry).collect::<Vec<f32>>(), (DIM, DIM), &Device::Cpu).unwrap()
}

/// What the two numbers of a head carry, and the neuron that each reaches.
type Head = [Option<(Carried, usize)>; 2];

/// Layer by layer, head by head.
const HEADS: [[Head; 4]; 2] = {
    use Carried::{A, B, Idle};
    [
        [[Some((Idle(0), 1)), Some((Idle(1), 3))], [Some((B(0), 0)), None], [None, None], [Some((A(0), 2)), None]],
        [
            [Some((B(1), 7)), None],
            [Some((Idle(0), 3)), Some((Idle(1), 4))],
            [None, Some((A(1), 5))],
            [Some((Idle(1), 6)), None],
        ],
    ]
};

/// A bit of a token.
#[derive(Clone, Copy)]
enum Carried {
    A(u32),
    B(u32),
    Idle(u32),
}

fn bit(value: u32, number: u32) -> f32 {
    if value >> number & 1 == 1 { 1. } else { -1. }
}

impl Wires {
    pub fn new() -> Self {
        let site = |name: &str, layer, role, mut last: Vec<Axis>| {
            let mut axes = vec![Axis::batch(), Axis::position()];
            axes.append(&mut last);
            Site::new(name, Some(layer), role, axes)
        };
        let heads = || vec![Axis::head(4), Axis::dim(2)];
        let all = vec![
            site("blocks.0.attn.hook_z", 0, Role::Attention, heads()),
            site("blocks.1.attn.hook_z", 1, Role::Attention, heads()),
            site("blocks.1.hook_resid_post", 1, Role::Residual, vec![Axis::dim(DIM)]),
            site("blocks.1.mlp.hook_post", 1, Role::Mlp, vec![Axis::dim(DIM)]),
        ];
        Self { sites: Sites::new(all, 2).unwrap() }
    }

    /// `[rows, 3, 4, 2]`: what the heads of a layer carry.
    fn z(&self, rows: &[Vec<u32>], layer: usize) -> Tensor {
        let mut numbers = vec![0f32; rows.len() * 3 * 8];
        for (at, row) in rows.iter().enumerate() {
            for (entry, carried) in HEADS[layer].as_flattened().iter().enumerate() {
                let Some((carried, _)) = carried else { continue };
                numbers[(at * 3 + 2) * 8 + entry] = match *carried {
                    Carried::A(number) => bit(row[0], number),
                    Carried::B(number) => bit(row[1], number),
                    Carried::Idle(number) => bit(row[2], number),
                };
            }
        }
        Tensor::from_vec(numbers, (rows.len(), 3, 4, 2), &Device::Cpu).unwrap()
    }
}

/// `[4 heads x 2, 8 neurons]`: where a layer's heads write.
fn writes(layer: usize) -> Tensor {
    let mut numbers = vec![0f32; 8 * DIM];
    for (entry, carried) in HEADS[layer].as_flattened().iter().enumerate() {
        if let Some((_, neuron)) = carried {
            numbers[entry * DIM + neuron] = 1.;
        }
    }
    Tensor::from_vec(numbers, (8, DIM), &Device::Cpu).unwrap()
}

/// `[8 neurons, 16 answers]`
fn reads() -> Tensor {
    let mut numbers = vec![0f32; DIM * 16];
    for answer in 0..16 {
        let (a, b) = (answer / 4, answer % 4);
        for (neuron, weight) in [(2, bit(a, 0)), (5, bit(a, 1)), (0, bit(b, 0)), (7, bit(b, 1))] {
            numbers[neuron * 16 + answer as usize] = 3. * weight;
        }
    }
    Tensor::from_vec(numbers, (DIM, 16), &Device::Cpu).unwrap()
}

impl Network for Wires {
    fn sites(&self) -> &Sites {
        &self.sites
    }

    fn run(&self, inputs: &Inputs, plan: &Plan) -> Result<Run> {
        let Inputs::Tokens(tokens) = inputs else { return Err(Error::Inputs("tokens are needed".into())) };
        let prepared = Prepared::new(&self.sites, plan)?;
        let rows = tokens.rows();
        let mut tap = Tap::new(&prepared, Frame::whole(rows, 3))?;
        let mut coordinates = Tensor::zeros((rows * 3, DIM), candle_core::DType::F32, &Device::Cpu)?;
        for layer in 0..2 {
            let z = tap.at(SiteId(layer), self.z(tokens.ids(), layer))?;
            coordinates = (coordinates + z.reshape((rows * 3, 8))?.matmul(&writes(layer))?)?;
        }
        let stream = coordinates.matmul(&turned())?.reshape((rows, 3, DIM))?;
        let stream = tap.at(SiteId(2), stream)?;
        let neurons = stream.reshape((rows * 3, DIM))?.matmul(&turned())?.reshape((rows, 3, DIM))?;
        let neurons = tap.at(SiteId(3), neurons)?;
        let logits = neurons.reshape((rows * 3, DIM))?.matmul(&reads())?.reshape((rows, 3, 16))?;
        let logits = match tap.output_positions()? {
            Some(positions) if positions == [2] => logits.narrow(1, 2, 1)?,
            _ => logits,
        };
        Ok(tap.finish(logits, Work::default()))
    }
}

/// A variable of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Variable {
    A,
    B,
}

/// Triples that want `variable` of the source, and all else of the base.
pub fn triples(variable: Variable, count: usize, seed: u64) -> Vec<Triple> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut prompt = || (0..3).map(|_| random.random_range(0..4)).collect::<Vec<u32>>();
    let triple = |_| {
        let (base, source) = (prompt(), prompt());
        let (answer, wrong) = match variable {
            Variable::A => (4 * source[0] + base[1], 4 * base[0] + base[1]),
            Variable::B => (4 * base[0] + source[1], 4 * base[0] + base[1]),
        };
        Triple {
            base,
            source,
            answers: vec![answer],
            wrong_answers: if wrong == answer { vec![(answer + 1) % 16] } else { vec![wrong] },
            desideratum: format!("{variable:?}"),
            weight: 1.,
        }
    };
    (0..count).map(triple).collect()
}
