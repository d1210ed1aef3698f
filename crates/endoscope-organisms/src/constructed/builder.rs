//! Weights written by hand: a GPT-2 whose residual stream is divided into named spaces, and whose LayerNorm does nothing.
//!
//! LayerNorm takes away the mean of the stream and divides by its deviation. Every reader subtracts from what it reads a
//! coordinate that nothing writes ([`QUIET`]), so that the mean, taken from both, does not matter. The embedding writes
//! plus and minus [`LOUD`] into two coordinates that nothing reads ([`LOUD_AT`]), beside which what anyone else writes does
//! not count: with d coordinates and `x` everything else, the deviation is `sqrt((2 LOUD^2 + |x|^2) / d)` or a little less,
//! and the norm's weight is `sqrt(2 LOUD^2 / d)`. So every reader sees `x` to a factor `1 - |x|^2 / (4 LOUD^2)`: with
//! `|x|^2` below 80, to 2 in 100,000.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use endoscope_models::{Activation, Biases, Family, Positions, Spec, model_files};
use endoscope_train::generator;
use rand::RngExt;

use super::Files;
use crate::error::Result;

const LOUD: f32 = 1024.;
/// Where the embedding writes plus and minus [`LOUD`].
const LOUD_AT: [usize; 2] = [0, 1];
/// Always 0 but for what the norm takes away.
const QUIET: usize = 2;
const RESERVED: usize = 3;
/// Random numbers of heads' preferences are streams from here on; those of what they write have the heads' numbers.
const PREFERENCES: u64 = 1 << 32;

/// Some coordinates of the residual stream, or some tokens, side by side.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    first: usize,
    width: usize,
}

impl Space {
    pub fn at(self, index: usize) -> usize {
        debug_assert!(index < self.width);
        self.first + index
    }

    /// `width` of them, from `first` on.
    pub fn part(self, first: usize, width: usize) -> Self {
        debug_assert!(first + width <= self.width);
        Self { first: self.first + first, width }
    }

    fn pairs(self, other: Self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.width.min(other.width)).map(move |index| (index, self.at(index), other.at(index)))
    }
}

/// Sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub vocabulary: usize,
    pub context: usize,
    pub layers: usize,
    pub heads: usize,
    pub d_head: usize,
    pub d_mlp: usize,
}

/// Which projection of a head.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Query,
    Key,
    Value,
}

/// A head by its layer and number.
pub type Head = (usize, usize);

/// `[rows, columns]`, row by row.
struct Matrix {
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { columns, values: vec![0.; rows * columns] }
    }

    fn add(&mut self, row: usize, column: usize, value: f32) {
        self.values[row * self.columns + column] += value;
    }

    /// Makes each column, which belongs to a reader, read the quiet coordinate so that its sum is 0.
    fn balance(&mut self) {
        for column in 0..self.columns {
            let sum: f32 = self.values.iter().skip(column).step_by(self.columns).sum();
            self.add(QUIET, column, -sum);
        }
    }

    fn transposed(&self) -> Vec<f32> {
        let column = |column| self.values.iter().skip(column).step_by(self.columns).copied();
        (0..self.columns).flat_map(column).collect()
    }
}

/// Weights as GPT-2 stores them: `[in, out]`.
struct Layer {
    /// `[d_model, 3 heads d_head]`.
    qkv: Matrix,
    qkv_bias: Matrix,
    /// `[heads d_head, d_model]`.
    out: Matrix,
    /// `[d_model, d_mlp]`.
    up: Matrix,
    up_bias: Matrix,
    /// `[d_mlp, d_model]`.
    down: Matrix,
    down_bias: Matrix,
    neurons: usize,
}

/// A model being built.
pub struct Builder {
    sizes: Sizes,
    d_model: usize,
    /// How many coordinates have a name.
    named: usize,
    /// `[vocabulary, d_model]`.
    embed: Matrix,
    /// `[context, d_model]`.
    positions: Matrix,
    /// `[d_model, vocabulary]`.
    unembed: Matrix,
    layers: Vec<Layer>,
    /// One-hot positions, where the embedding of positions writes them.
    position: Space,
}

impl Builder {
    /// A model whose embedding writes each token and each position one-hot: the builder and the space of tokens.
    pub fn new(sizes: Sizes) -> (Self, Space) {
        let Sizes { vocabulary, context, layers, heads, d_head, d_mlp } = sizes;
        let d_model = heads * d_head;
        let layer = |_| Layer {
            qkv: Matrix::zeros(d_model, 3 * d_model),
            qkv_bias: Matrix::zeros(1, 3 * d_model),
            out: Matrix::zeros(d_model, d_model),
            up: Matrix::zeros(d_model, d_mlp),
            up_bias: Matrix::zeros(1, d_mlp),
            down: Matrix::zeros(d_mlp, d_model),
            down_bias: Matrix::zeros(1, d_model),
            neurons: 0,
        };
        let mut builder = Self {
            sizes,
            d_model,
            named: RESERVED,
            embed: Matrix::zeros(vocabulary, d_model),
            positions: Matrix::zeros(context, d_model),
            unembed: Matrix::zeros(d_model, vocabulary),
            layers: (0..layers).map(layer).collect(),
            position: Space { first: 0, width: 0 },
        };
        let tokens = builder.space(vocabulary);
        builder.position = builder.space(context);
        for token in 0..vocabulary {
            builder.embed.add(token, LOUD_AT[0], LOUD);
            builder.embed.add(token, LOUD_AT[1], -LOUD);
            builder.embed.add(token, tokens.at(token), 1.);
        }
        for at in 0..context {
            builder.positions.add(at, builder.position.at(at), 1.);
        }
        (builder, tokens)
    }

    /// The next `width` coordinates.
    pub fn space(&mut self, width: usize) -> Space {
        let space = Space { first: self.named, width };
        self.named += width;
        debug_assert!(self.named <= self.d_model, "{} coordinates are named, of {}", self.named, self.d_model);
        space
    }

    fn column(&self, (_, head): Head, part: Part, channel: usize) -> usize {
        debug_assert!(channel < self.sizes.d_head);
        part as usize * self.d_model + head * self.sizes.d_head + channel
    }

    /// `channel` of the head's queries, keys or values reads `coordinate`.
    pub fn read(&mut self, head: Head, part: Part, coordinate: usize, channel: usize, weight: f32) {
        let column = self.column(head, part, channel);
        self.layers[head.0].qkv.add(coordinate, column, weight);
    }

    /// `channel` of the head's queries, keys or values is this much higher everywhere.
    pub fn bias(&mut self, head: Head, part: Part, channel: usize, value: f32) {
        let column = self.column(head, part, channel);
        self.layers[head.0].qkv_bias.add(0, column, value);
    }

    /// `channel` of what the head attends to is written to `coordinate`.
    pub fn write(&mut self, head: Head, channel: usize, coordinate: usize, weight: f32) {
        self.layers[head.0].out.add(head.1 * self.sizes.d_head + channel, coordinate, weight);
    }

    /// What a query must be multiplied by for a score of `gain`, since scores are divided by sqrt(d_head).
    pub fn query_weight(&self, gain: f32) -> f32 {
        gain * (self.sizes.d_head as f32).sqrt()
    }

    /// The head attends from where `query` holds entry i to where `key` does: with score `gain` where both are 1.
    pub fn attends_where_equal(&mut self, head: Head, query: Space, key: Space, gain: f32) {
        let weight = self.query_weight(gain);
        for (channel, query, key) in query.pairs(key) {
            self.read(head, Part::Query, query, channel, weight);
            self.read(head, Part::Key, key, channel, 1.);
        }
    }

    /// The head attends `back` positions back with score `gain`, all others having 0.
    pub fn attends_back(&mut self, head: Head, back: usize, gain: f32) {
        let (positions, count) = (self.position, self.sizes.context.saturating_sub(back));
        self.attends_where_equal(head, positions.part(back, count), positions.part(0, count), gain);
    }

    /// The head attends to where `coordinate` is 1 with score `gain`, from everywhere.
    pub fn attends_to(&mut self, head: Head, coordinate: usize, channel: usize, gain: f32) {
        let weight = self.query_weight(gain);
        self.bias(head, Part::Query, channel, weight);
        self.read(head, Part::Key, coordinate, channel, 1.);
    }

    /// The head copies `from`, of what it attends to, into `to`, through its channels from `first` on.
    pub fn copies(&mut self, head: Head, from: Space, to: Space, first: usize) {
        for (channel, from, to) in from.pairs(to) {
            self.read(head, Part::Value, from, first + channel, 1.);
            self.write(head, first + channel, to, 1.);
        }
    }

    /// The next neuron of the layer's MLP: `relu(sum of reads + bias)`, added to each write times its weight.
    pub fn neuron(&mut self, layer: usize, reads: &[(usize, f32)], bias: f32, writes: &[(usize, f32)]) {
        let weights = &mut self.layers[layer];
        let neuron = weights.neurons;
        weights.neurons += 1;
        for &(coordinate, weight) in reads {
            weights.up.add(coordinate, neuron, weight);
        }
        weights.up_bias.add(0, neuron, bias);
        for &(coordinate, weight) in writes {
            weights.down.add(neuron, coordinate, weight);
        }
    }

    /// The layer's MLP adds `value` to `coordinate` everywhere.
    pub fn mlp_bias(&mut self, layer: usize, coordinate: usize, value: f32) {
        self.layers[layer].down_bias.add(0, coordinate, value);
    }

    /// The logit of `token` rises with `coordinate`.
    pub fn unembed(&mut self, coordinate: usize, token: usize, weight: f32) {
        self.unembed.add(coordinate, token, weight);
    }

    /// A distractor: the head attends from everywhere, to entries of `keys` with random scores up to `gain`.
    pub fn prefers(&mut self, head: Head, keys: Space, gain: f32) {
        let mut random = generator(1 + head.0 as u64, PREFERENCES + head.1 as u64);
        for index in 0..keys.width {
            self.read(head, Part::Key, keys.at(index), 0, random.random_range(0f32..1.));
        }
        let weight = self.query_weight(gain);
        self.bias(head, Part::Query, 0, weight);
    }

    /// A distractor: the head writes `from`, of what it attends to, at random into `to`, a little louder than the circuit
    /// writes.
    pub fn scrambles(&mut self, head: Head, from: Space, to: Space) {
        let mut random = generator(1 + head.0 as u64, head.1 as u64);
        // Even numbers from -1 to 1 have the variance 1/3.
        let weight = 1.5 * (3. / to.width as f32).sqrt();
        for channel in 0..from.width.min(self.sizes.d_head) {
            self.read(head, Part::Value, from.at(channel), channel, 1.);
            for index in 0..to.width {
                self.write(head, channel, to.at(index), weight * random.random_range(-1f32..1.));
            }
        }
    }

    /// Distractors: all neurons left of the layer's MLP read `from` at random and write at random into `to`.
    pub fn murmurs(&mut self, layer: usize, from: &[Space], to: Space) {
        let mut random = generator(1 + layer as u64, u64::MAX);
        for _ in self.layers[layer].neurons..self.sizes.d_mlp {
            let coordinates = from.iter().flat_map(|space| (0..space.width).map(|index| space.at(index)));
            let reads: Vec<_> = coordinates.map(|at| (at, random.random_range(-1f32..1.))).collect();
            let bias = random.random_range(0f32..0.5);
            let writes: Vec<_> = (0..to.width).map(|at| (to.at(at), random.random_range(-0.1f32..0.1))).collect();
            self.neuron(layer, &reads, bias, &writes);
        }
    }

    /// `config.json` and `model.safetensors`.
    pub fn files(mut self) -> Result<Files> {
        let Sizes { vocabulary, context, layers, heads, d_head, d_mlp } = self.sizes;
        let d_model = self.d_model;
        let spec = Spec {
            vocabulary,
            context,
            d_model,
            layers,
            heads,
            kv_heads: heads,
            d_head,
            d_mlp,
            positions: Positions::Learned,
            activation: Activation::Relu,
            biases: Biases { qkv: true, attention_out: true, mlp: true },
            ..Spec::default()
        };
        let mut tensors = HashMap::new();
        let mut put = |name: String, shape: &[usize], values: Vec<f32>| -> Result<()> {
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).map_err(endoscope_models::Error::from)?);
            Ok(())
        };
        self.unembed.balance();
        put("transformer.wte.weight".into(), &[vocabulary, d_model], self.embed.values)?;
        put("transformer.wpe.weight".into(), &[context, d_model], self.positions.values)?;
        put("lm_head.weight".into(), &[vocabulary, d_model], self.unembed.transposed())?;
        let scale = LOUD * (2. / d_model as f32).sqrt();
        let norms = (0..layers).flat_map(|layer| [format!("h.{layer}.ln_1"), format!("h.{layer}.ln_2")]);
        for norm in norms.chain(["ln_f".to_string()]) {
            put(format!("transformer.{norm}.weight"), &[d_model], vec![scale; d_model])?;
            put(format!("transformer.{norm}.bias"), &[d_model], vec![0.; d_model])?;
        }
        for (number, mut layer) in self.layers.into_iter().enumerate() {
            layer.qkv.balance();
            layer.up.balance();
            let mut put =
                |name: &str, shape: &[usize], values| put(format!("transformer.h.{number}.{name}"), shape, values);
            put("attn.c_attn.weight", &[d_model, 3 * d_model], layer.qkv.values)?;
            put("attn.c_attn.bias", &[3 * d_model], layer.qkv_bias.values)?;
            put("attn.c_proj.weight", &[d_model, d_model], layer.out.values)?;
            put("attn.c_proj.bias", &[d_model], vec![0.; d_model])?;
            put("mlp.c_fc.weight", &[d_model, d_mlp], layer.up.values)?;
            put("mlp.c_fc.bias", &[d_mlp], layer.up_bias.values)?;
            put("mlp.c_proj.weight", &[d_mlp, d_model], layer.down.values)?;
            put("mlp.c_proj.bias", &[d_model], layer.down_bias.values)?;
        }
        let files = model_files(Family::Gpt2, &spec, &Family::Gpt2.config(&spec)?, &tensors)?;
        Ok(files.into_iter().map(|(name, contents)| (name.to_string(), contents)).collect())
    }
}
