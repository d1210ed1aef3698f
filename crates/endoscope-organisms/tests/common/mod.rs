//! A constructed organism with its weights, and interventions on single edges.
//!
//! What a node wrote is added up in the stream, and each reader reads the sum through LayerNorm. With the norm's divisor held as
//! it was, what changes for a reader when it reads `c` of a node instead of `x` is `(c - x) / divisor * weight`, projected.

#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, Device, Tensor};
use endoscope_models::Model;
use endoscope_net::{AxisName, Capture, Captured, Change, Edit, Index, Inputs, Network, Plan};
use endoscope_organisms::{Constructed, PromptPair, constructed, write_organism};

/// A node of the graph; `input` is none, since nothing changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Input,
    Head(usize, usize),
    Mlp(usize),
}

/// What reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Layer, head, and 0, 1 or 2 for queries, keys or values.
    Head(usize, usize, usize),
    Mlp(usize),
    Logits,
}

impl Node {
    pub fn name(self) -> String {
        match self {
            Self::Input => "input".into(),
            Self::Head(layer, head) => format!("a{layer}.h{head}"),
            Self::Mlp(layer) => format!("m{layer}"),
        }
    }
}

impl Reader {
    pub fn name(self) -> String {
        match self {
            Self::Head(layer, head, part) => format!("a{layer}.h{head}<{}>", ["q", "k", "v"][part]),
            Self::Mlp(layer) => format!("m{layer}"),
            Self::Logits => "logits".into(),
        }
    }

    /// Whether it belongs to this node.
    pub fn of(self) -> Option<Node> {
        match self {
            Self::Head(layer, head, _) => Some(Node::Head(layer, head)),
            Self::Mlp(layer) => Some(Node::Mlp(layer)),
            Self::Logits => None,
        }
    }
}

pub fn edge(from: Node, to: Reader) -> String {
    format!("{}->{}", from.name(), to.name())
}

pub struct Lab {
    pub organism: Constructed,
    pub model: Model,
    weights: HashMap<String, Tensor>,
}

/// A batch of pairs of one length, and what both runs wrote.
pub struct Batch {
    pub pairs: Vec<PromptPair>,
    pub clean: Captured,
    pub corrupt: Captured,
    /// By how much the clean run's right answer leads the wrong one.
    pub lead: Vec<f32>,
}

impl Lab {
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        write_organism(name, &path).unwrap();
        let model = Model::open(&path).unwrap();
        let weights = candle_core::safetensors::load(path.join("model.safetensors"), &Device::Cpu).unwrap();
        Self { organism: constructed(name).unwrap(), model, weights }
    }

    /// Pairs by length, each length a batch.
    pub fn batches(&self, seed: u64, count: usize) -> Vec<Batch> {
        let mut lengths: BTreeMap<usize, Vec<PromptPair>> = BTreeMap::new();
        for pair in self.organism.pairs(seed, count) {
            lengths.entry(pair.clean.len()).or_default().push(pair);
        }
        let sites = [
            "hook_embed",
            "hook_pos_embed",
            "result.*",
            "z.*",
            "mlp_out.*",
            "blocks.*.ln?.hook_scale",
            "ln_final.hook_scale",
        ];
        let batch = |pairs: Vec<PromptPair>| {
            let plan = sites.iter().fold(Plan::default(), |plan, site| plan.capture(Capture::new(*site)));
            let run =
                |rows: Vec<Vec<u32>>| self.model.decoder.run(&Inputs::tokens(rows).unwrap(), &plan).unwrap().captured;
            let clean = run(pairs.iter().map(|pair| pair.clean.clone()).collect());
            let corrupt = run(pairs.iter().map(|pair| pair.corrupt.clone()).collect());
            let mut batch = Batch { pairs, clean, corrupt, lead: Vec::new() };
            batch.lead = self.differences(&batch, Plan::default());
            batch
        };
        lengths.into_values().map(batch).collect()
    }

    /// Logits of the last position of the clean prompts under a plan: `[b, vocabulary]`.
    pub fn logits(&self, batch: &Batch, plan: Plan) -> Vec<Vec<f32>> {
        let rows = batch.pairs.iter().map(|pair| pair.clean.clone()).collect();
        let logits = self.model.decoder.run(&Inputs::tokens(rows).unwrap(), &plan).unwrap().outputs;
        let last = logits.dim(1).unwrap() - 1;
        logits.narrow(1, last, 1).unwrap().squeeze(1).unwrap().to_vec2().unwrap()
    }

    /// The logit of the right answer over that of the wrong one, under a plan.
    pub fn differences(&self, batch: &Batch, plan: Plan) -> Vec<f32> {
        let of = |(logits, pair): (Vec<f32>, &PromptPair)| {
            logits[pair.answers[0] as usize] - logits[pair.wrong_answers[0] as usize]
        };
        self.logits(batch, plan).into_iter().zip(&batch.pairs).map(of).collect()
    }

    /// The share of right answers under a plan.
    pub fn accuracy(&self, batches: &[Batch], plan: impl Fn(&Batch) -> Plan) -> f64 {
        let (mut right, mut all) = (0u32, 0u32);
        for batch in batches {
            for (logits, pair) in self.logits(batch, plan(batch)).iter().zip(&batch.pairs) {
                all += 1;
                right += u32::from(best(logits) == pair.answers[0]);
            }
        }
        f64::from(right) / f64::from(all)
    }

    /// All nodes that write, in the order of the mathematics.
    pub fn nodes(&self) -> Vec<Node> {
        let spec = self.model.spec();
        let layer = |layer| (0..spec.heads).map(move |head| Node::Head(layer, head)).chain([Node::Mlp(layer)]);
        std::iter::once(Node::Input).chain((0..spec.layers).flat_map(layer)).collect()
    }

    /// All edges.
    pub fn edges(&self) -> Vec<(Node, Reader)> {
        let nodes = self.nodes();
        let mut edges = Vec::new();
        for (at, &node) in nodes.iter().enumerate() {
            let readers: Vec<Reader> = match node {
                Node::Input => continue,
                Node::Head(layer, head) => (0..3).map(|part| Reader::Head(layer, head, part)).collect(),
                Node::Mlp(layer) => vec![Reader::Mlp(layer)],
            };
            // The heads of a layer read the same stream: none reads another.
            let before = |&&from: &&Node| !matches!((from, node), (Node::Head(a, _), Node::Head(b, _)) if a == b);
            for reader in readers {
                edges.extend(nodes[..at].iter().filter(before).map(|&from| (from, reader)));
            }
        }
        edges.extend(nodes.into_iter().map(|from| (from, Reader::Logits)));
        edges
    }

    /// What a node wrote in a run: `[b, s, d]`.
    pub fn written(&self, run: &Captured, node: Node) -> Tensor {
        let get = |site: &str| run.get(site).unwrap().clone();
        match node {
            Node::Input => (get("hook_embed") + get("hook_pos_embed")).unwrap(),
            Node::Head(layer, head) => {
                get(&format!("blocks.{layer}.attn.hook_result")).narrow(2, head, 1).unwrap().squeeze(2).unwrap()
            }
            Node::Mlp(layer) => get(&format!("blocks.{layer}.hook_mlp_out")),
        }
    }

    /// The clean run in which `reader` reads `change` (`[b, s, d]`) more.
    pub fn reads(&self, batch: &Batch, reader: Reader, change: &Tensor) -> Edit {
        let scaled =
            |norm: &str| change.broadcast_div(batch.clean.get(&format!("{norm}.hook_scale")).unwrap()).unwrap();
        let weighted = |norm: &str, weight: &str| {
            scaled(norm).broadcast_mul(&self.weights[&format!("transformer.{weight}.weight")]).unwrap()
        };
        let add = |value: Tensor| Change::Add { value: value.into(), scale: 1. };
        match reader {
            Reader::Head(layer, head, part) => {
                let spec = self.model.spec();
                let read = weighted(&format!("blocks.{layer}.ln1"), &format!("h.{layer}.ln_1"));
                let first = part * spec.heads * spec.d_head + head * spec.d_head;
                let projection = self.weights[&format!("transformer.h.{layer}.attn.c_attn.weight")]
                    .narrow(1, first, spec.d_head)
                    .unwrap();
                let value = read.broadcast_matmul(&projection.contiguous().unwrap()).unwrap().unsqueeze(2).unwrap();
                let site = format!("blocks.{layer}.attn.hook_{}", ["q", "k", "v"][part]);
                Edit::new(site, add(value)).at(AxisName::Head, Index::At(head as i64))
            }
            Reader::Mlp(layer) => {
                let read = weighted(&format!("blocks.{layer}.ln2"), &format!("h.{layer}.ln_2"));
                Edit::new(format!("blocks.{layer}.hook_mlp_in"), add(read))
            }
            Reader::Logits => Edit::new("ln_final.hook_normalized", add(scaled("ln_final"))),
        }
    }

    /// What a node writes, taken from the corrupt run.
    pub fn exchanged(&self, batch: &Batch, node: Node) -> Edit {
        let source = |site: String| {
            let change = Change::Patch { source: batch.corrupt.get(&site).unwrap().clone().into() };
            Edit::new(site, change)
        };
        match node {
            Node::Input => panic!("the input is exchanged by running the other prompt"),
            Node::Head(layer, head) => {
                source(format!("blocks.{layer}.attn.hook_z")).at(AxisName::Head, Index::At(head as i64))
            }
            Node::Mlp(layer) => source(format!("blocks.{layer}.hook_mlp_out")),
        }
    }
}

pub fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    best.0 as u32
}

/// The greatest squared norm of the stream without its two loud coordinates.
pub fn quiet_norm(stream: &Tensor) -> f32 {
    let width = stream.dim(D::Minus1).unwrap();
    let quiet = stream.narrow(D::Minus1, 2, width - 2).unwrap();
    quiet.sqr().unwrap().sum(D::Minus1).unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}
