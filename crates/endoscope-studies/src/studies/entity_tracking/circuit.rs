//! The circuit: which heads are found by path patching, and edits that take what some heads write from elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use endoscope_causal::{Direction, Graph, Pair, PathSweep, Planner, Receiver, Sender, path_sweep};
use endoscope_net::{Captured, Change, Edit, Index, Plan, Resume};
use endoscope_train::generator;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::prompts::{Asked, Form, Region};
use crate::error::Result;

/// A head in one part of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Node {
    pub layer: usize,
    pub head: usize,
    pub region: Region,
}

/// What a head of the circuit is there for: the paper's names, by what reads the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// At the end, read by the logits.
    ValueFetcher,
    /// At the end, read by the fetchers' queries.
    PositionTransmitter,
    /// In the question, read by the keys and values of both.
    PositionDetector,
    /// In the facts, read by the keys and values of all of these.
    StructureReader,
}

impl Group {
    pub const ALL: [Self; 4] =
        [Self::ValueFetcher, Self::PositionTransmitter, Self::PositionDetector, Self::StructureReader];

    pub fn name(self) -> &'static str {
        ["value fetchers", "position transmitters", "position detectors", "structure readers"][self as usize]
    }

    /// Where its heads write.
    pub fn region(self) -> Region {
        match self {
            Self::ValueFetcher | Self::PositionTransmitter => Region::End,
            Self::PositionDetector => Region::Question,
            Self::StructureReader => Region::Facts,
        }
    }
}

/// A head of the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub group: Group,
    pub layer: usize,
    pub head: usize,
    /// The share of the logit difference that is lost along the direct path to what reads it.
    pub effect: f64,
}

impl Member {
    pub fn node(&self) -> Node {
        Node { layer: self.layer, head: self.head, region: self.group.region() }
    }
}

/// How heads are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// How the prompts are written.
    pub form: Form,
    /// The least effect that counts.
    pub least: f64,
    /// The most heads of a group.
    pub most: usize,
    /// The share of all heads that a circuit may have.
    pub share: f64,
}

/// The circuit that path patching finds (Prakash et al. 2024, section 3, after Wang et al. 2022): from the logits back,
/// group by group.
pub fn discover(network: &dyn Resume, pairs: &[Pair], choice: Choice) -> Result<Vec<Member>> {
    let graph = Graph::new(network.sites())?;
    let mut found: Vec<Member> = Vec::new();
    for group in Group::ALL {
        let (inputs, readers): (&[&str], &[Group]) = match group {
            Group::ValueFetcher => (&[], &[]),
            Group::PositionTransmitter => (&["q"], &Group::ALL[..1]),
            Group::PositionDetector => (&["k", "v"], &Group::ALL[..2]),
            Group::StructureReader => (&["k", "v"], &Group::ALL[..3]),
        };
        let to = match group {
            Group::ValueFetcher => vec![Receiver { site: "final".into(), heads: Index::All }],
            _ => receivers(&graph, found.iter().filter(|member| readers.contains(&member.group)), inputs),
        };
        if to.is_empty() {
            continue;
        }
        let mut effects = effects(network, pairs, to, group.region().index(choice.form))?;
        effects.retain(|&([layer, head], effect)| {
            let node = Node { layer, head, region: group.region() };
            effect >= choice.least && found.iter().all(|member| member.node() != node)
        });
        effects.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.extend(effects.into_iter().take(choice.most).map(|([layer, head], effect)| Member {
            group,
            layer,
            head,
            effect,
        }));
    }
    let most = (choice.share * (graph.layers * graph.heads) as f64).floor() as usize;
    found.sort_by(|a, b| b.effect.total_cmp(&a.effect));
    let mut heads = BTreeSet::new();
    found.retain(|member| {
        let head = (member.layer, member.head);
        heads.contains(&head) || (heads.len() < most && heads.insert(head))
    });
    found.sort_by_key(|member| (member.group, member.layer, member.head));
    Ok(found)
}

/// The inputs of heads, as receivers. Under grouped heads those of their key/value heads.
fn receivers<'a>(graph: &Graph, members: impl Iterator<Item = &'a Member> + Clone, inputs: &[&str]) -> Vec<Receiver> {
    let mut heads: BTreeMap<(usize, &str), BTreeSet<i64>> = BTreeMap::new();
    for &input in inputs {
        for member in members.clone() {
            let head = if input == "q" { member.head } else { member.head * graph.kv_heads / graph.heads };
            heads.entry((member.layer, input)).or_default().insert(head as i64);
        }
    }
    let receiver = |((layer, input), heads): ((usize, &str), BTreeSet<i64>)| Receiver {
        site: format!("{input}.{layer}"),
        heads: Index::List(heads.into_iter().collect()),
    };
    heads.into_iter().map(receiver).collect()
}

/// The effect of each head's direct path from some positions to some receivers: the share of the difference between the
/// clean and the other prompt's answer that is lost.
pub fn effects(
    network: &dyn Resume,
    pairs: &[Pair],
    to: Vec<Receiver>,
    positions: Index,
) -> Result<Vec<([usize; 2], f64)>> {
    let sweep = PathSweep { from: vec!["heads".into()], positions, direction: Direction::Noise, ..PathSweep::new(to) };
    let scores = path_sweep(network, &sweep, pairs, Planner::default(), |_| ControlFlow::Continue(()))?;
    let of = |(sender, normalised): (&Sender, &Option<f64>)| match *sender {
        // Where the two prompts do not differ, nothing can be lost.
        Sender::Head { layer, head } => Some(([layer, head], normalised.map_or(0., |kept| 1. - kept))),
        Sender::Mlp { .. } | Sender::Embedding => None,
    };
    Ok(scores.senders.iter().zip(&scores.normalised).filter_map(of).collect())
}

/// The nodes of some members.
pub fn nodes<'a>(members: impl IntoIterator<Item = &'a Member>) -> BTreeSet<Node> {
    members.into_iter().map(Member::node).collect()
}

/// As many other heads of each layer in each region, drawn at random.
pub fn others(nodes: &BTreeSet<Node>, graph: &Graph, seed: u64, draw: u64) -> BTreeSet<Node> {
    let mut random = generator(seed, draw);
    let mut drawn = BTreeSet::new();
    for region in Region::ALL {
        for layer in 0..graph.layers {
            let count = nodes.iter().filter(|node| node.layer == layer && node.region == region).count();
            // Fisher and Yates, as far as it is needed.
            let mut heads: Vec<usize> = (0..graph.heads).collect();
            for at in 0..count {
                let other = random.random_range(at..graph.heads);
                heads.swap(at, other);
            }
            drawn.extend(heads[..count].iter().map(|&head| Node { layer, head, region }));
        }
    }
    drawn
}

/// A plan by which the heads that are chosen write in these prompts what `sources` have.
pub fn take(graph: &Graph, sources: &Captured, prompts: &Asked, chosen: impl Fn(&Node) -> bool) -> Result<Plan> {
    let &Asked { length, form, .. } = prompts;
    let mut plan = Plan::default();
    for layer in 0..graph.layers {
        let taken =
            |position: usize, head: usize| chosen(&Node { layer, head, region: Region::of(position, length, form) });
        let mask: Vec<f32> = (0..length)
            .flat_map(|position| (0..graph.heads).map(move |head| (position, head)))
            .map(|(position, head)| f32::from(u8::from(taken(position, head))))
            .collect();
        if mask.iter().all(|&taken| taken == 0.) {
            continue;
        }
        let site = format!("blocks.{layer}.attn.hook_z");
        let mask = Tensor::from_vec(mask, (length, graph.heads, 1), &Device::Cpu)?;
        let source = sources.get(&site)?.clone();
        plan =
            plan.edit(Edit::new(site, Change::Interpolate { source: source.into(), mask: mask.into(), along: None }));
    }
    Ok(plan)
}
