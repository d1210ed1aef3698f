//! The computational graph of a network: nodes that write to the residual stream, readers that read it, and the edges between.
//!
//! Nodes and edges have the names of EAP-IG and TransformerLens: `input`, `a5.h3`, `m2`, `logits`; `a0.h1->a5.h3<k>`. Every
//! reader reads the sum of all nodes before it, so its edges come from the first so many nodes. (Elhage et al. 2021; Hanna et
//! al. 2024, arXiv 2403.17806.)

use std::fmt;
use std::str::FromStr;

use endoscope_net::{AxisName, SiteId, Sites, Size};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What writes to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Node {
    /// Token and position embedding together: `input`.
    Input,
    /// One attention head: `a5.h3`.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number in the layer.
        head: usize,
    },
    /// One MLP: `m2`.
    Mlp {
        /// Its layer.
        layer: usize,
    },
}

/// What a head's copy of the stream is made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
}

/// What reads the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Reader {
    /// The queries, keys or values of a head: `a5.h3<k>`. Under grouped heads keys and values are those of a key/value head,
    /// and `h` counts these.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number in the layer, among heads or key/value heads.
        head: usize,
        /// What it reads it for.
        part: Part,
    },
    /// One MLP: `m2`.
    Mlp {
        /// Its layer.
        layer: usize,
    },
    /// The final norm and the unembedding: `logits`.
    Logits,
}

/// One node read by one reader: `a0.h1->a5.h3<k>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Edge {
    /// What writes.
    pub from: Node,
    /// What reads.
    pub to: Reader,
}

/// The graph of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// How many layers.
    pub layers: usize,
    /// How many heads a layer has.
    pub heads: usize,
    /// How many heads have keys and values of their own.
    pub kv_heads: usize,
    /// The length of a vector of the residual stream.
    pub d_model: usize,
    /// Whether attention and MLP of a layer read the same stream.
    pub parallel: bool,
    nodes: Vec<Node>,
    readers: Vec<Reader>,
    /// The first edge of each reader; one more at the end.
    first: Vec<usize>,
}

impl Graph {
    /// The graph that a network's sites imply.
    pub fn new(sites: &Sites) -> Result<Self> {
        let size = |site: &str, axis: AxisName| -> Result<usize> {
            let site = sites.get(sites.resolve_one(site)?);
            match site.axis(axis).map(|dimension| site.axes[dimension].size) {
                Some(Size::Fixed(size)) => Ok(size),
                _ => Err(Error::Circuit(format!("`{}` has no axis {axis}", site.name))),
            }
        };
        let layers = sites.layers();
        let heads = size("blocks.0.attn.hook_result", AxisName::Head)?;
        let kv_heads = size("blocks.0.hook_k_input", AxisName::Head)?;
        let d_model = size("blocks.0.hook_resid_pre", AxisName::Dim)?;
        let parallel = sites.resolve_one("blocks.0.hook_resid_mid").is_err();
        Ok(Self::of_sizes(layers, heads, kv_heads, d_model, parallel))
    }

    /// The graph of a decoder of these sizes.
    pub fn of_sizes(layers: usize, heads: usize, kv_heads: usize, d_model: usize, parallel: bool) -> Self {
        let mut nodes = vec![Node::Input];
        let (mut readers, mut first) = (Vec::new(), vec![0]);
        let mut read = |reader: Reader, senders: usize| {
            readers.push(reader);
            first.push(first[first.len() - 1] + senders);
        };
        for layer in 0..layers {
            let before = nodes.len();
            for (part, count) in [(Part::Query, heads), (Part::Key, kv_heads), (Part::Value, kv_heads)] {
                (0..count).for_each(|head| read(Reader::Head { layer, head, part }, before));
            }
            nodes.extend((0..heads).map(|head| Node::Head { layer, head }));
            read(Reader::Mlp { layer }, if parallel { before } else { nodes.len() });
            nodes.push(Node::Mlp { layer });
        }
        read(Reader::Logits, nodes.len());
        Self { layers, heads, kv_heads, d_model, parallel, nodes, readers, first }
    }

    /// The nodes that write, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The readers, in order.
    pub fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// How many edges there are.
    pub fn len(&self) -> usize {
        self.first[self.readers.len()]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The edges into the reader of this number: those of the first nodes, in order.
    pub fn edges_into(&self, reader: usize) -> std::ops::Range<usize> {
        self.first[reader]..self.first[reader + 1]
    }

    /// All edges, reader after reader, node after node.
    pub fn edges(&self) -> impl Iterator<Item = Edge> {
        self.readers.iter().enumerate().flat_map(|(number, &to)| {
            let count = self.edges_into(number).len();
            self.nodes[..count].iter().map(move |&from| Edge { from, to })
        })
    }

    /// The edge of this number.
    pub fn edge(&self, number: usize) -> Edge {
        let reader = self.first.partition_point(|&first| first <= number) - 1;
        Edge { from: self.nodes[number - self.first[reader]], to: self.readers[reader] }
    }

    /// The number of an edge.
    pub fn number(&self, edge: Edge) -> Result<usize> {
        let reader = self.readers.iter().position(|&reader| reader == edge.to);
        let from = self.node_number(edge.from);
        match (reader, from) {
            (Some(reader), Some(from)) if from < self.edges_into(reader).len() => Ok(self.first[reader] + from),
            _ => Err(Error::Circuit(format!(
                "there is no edge `{edge}` in a network of {} layers with {} heads{}",
                self.layers,
                self.heads,
                if self.heads == self.kv_heads {
                    String::new()
                } else {
                    format!(" and {} key/value heads", self.kv_heads)
                }
            ))),
        }
    }

    /// The number of a node.
    pub fn node_number(&self, node: Node) -> Option<usize> {
        self.nodes.iter().position(|&known| known == node)
    }

    /// The site of the stream that a reader's copy is of.
    pub(crate) fn stream_of(&self, reader: Reader) -> String {
        match reader {
            Reader::Mlp { layer } if !self.parallel => format!("blocks.{layer}.hook_resid_mid"),
            Reader::Head { layer, .. } | Reader::Mlp { layer } => format!("blocks.{layer}.hook_resid_pre"),
            Reader::Logits => format!("blocks.{}.hook_resid_post", self.layers.saturating_sub(1)),
        }
    }

    /// The node whose output depends on what a reader reads, or several: those of the query heads that share a key.
    pub fn nodes_of(&self, reader: Reader) -> Vec<Node> {
        match reader {
            Reader::Head { layer, head, part: Part::Query } => vec![Node::Head { layer, head }],
            Reader::Head { layer, head, .. } => {
                let shared = self.heads / self.kv_heads.max(1);
                (head * shared..(head + 1) * shared).map(|head| Node::Head { layer, head }).collect()
            }
            Reader::Mlp { layer } => vec![Node::Mlp { layer }],
            Reader::Logits => Vec::new(),
        }
    }

    /// The readers that a node's output depends on.
    pub fn readers_of(&self, node: Node) -> Vec<Reader> {
        match node {
            Node::Input => Vec::new(),
            Node::Mlp { layer } => vec![Reader::Mlp { layer }],
            Node::Head { layer, head } => {
                let shared = head / (self.heads / self.kv_heads.max(1)).max(1);
                let of = |head, part| Reader::Head { layer, head, part };
                vec![of(head, Part::Query), of(shared, Part::Key), of(shared, Part::Value)]
            }
        }
    }
}

impl Reader {
    /// The site that it reads, and which of its heads.
    pub(crate) fn site(self, sites: &Sites) -> Result<(SiteId, Option<usize>)> {
        let last = sites.layers().saturating_sub(1);
        let (name, head) = match self {
            Self::Head { layer, head, part } => (format!("blocks.{layer}.hook_{}_input", part.letter()), Some(head)),
            Self::Mlp { layer } => (format!("blocks.{layer}.hook_mlp_input"), None),
            Self::Logits => (format!("blocks.{last}.hook_resid_post"), None),
        };
        Ok((sites.resolve_one(&name)?, head))
    }
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];

    /// Its letter in names.
    pub fn letter(self) -> char {
        match self {
            Self::Query => 'q',
            Self::Key => 'k',
            Self::Value => 'v',
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input => f.write_str("input"),
            Self::Head { layer, head } => write!(f, "a{layer}.h{head}"),
            Self::Mlp { layer } => write!(f, "m{layer}"),
        }
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head { layer, head, part } => write!(f, "a{layer}.h{head}<{}>", part.letter()),
            Self::Mlp { layer } => write!(f, "m{layer}"),
            Self::Logits => f.write_str("logits"),
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.from, self.to)
    }
}

impl FromStr for Node {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let head = || text.strip_prefix('a')?.split_once(".h");
        let number = |text: &str| text.parse::<usize>().ok();
        let node = match text {
            "input" => Some(Self::Input),
            _ => match head() {
                Some((layer, head)) => number(layer).zip(number(head)).map(|(layer, head)| Self::Head { layer, head }),
                None => text.strip_prefix('m').and_then(number).map(|layer| Self::Mlp { layer }),
            },
        };
        node.ok_or_else(|| Error::Circuit(format!("`{text}` is no node; nodes are input, a0.h3 (heads), m2 (MLPs)")))
    }
}

impl FromStr for Reader {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let part = Part::ALL
            .into_iter()
            .find_map(|part| Some((part, text.strip_suffix('>')?.strip_suffix(part.letter())?.strip_suffix('<')?)));
        let reader = match (text, part) {
            ("logits", _) => Some(Self::Logits),
            (_, Some((part, node))) => match node.parse() {
                Ok(Node::Head { layer, head }) => Some(Self::Head { layer, head, part }),
                _ => None,
            },
            (node, None) => match node.parse() {
                Ok(Node::Mlp { layer }) => Some(Self::Mlp { layer }),
                _ => None,
            },
        };
        reader.ok_or_else(|| {
            Error::Circuit(format!("`{text}` reads nothing; edges end at a0.h3<q>, a0.h3<k>, a0.h3<v>, m2 and logits"))
        })
    }
}

impl FromStr for Edge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once("->") {
            Some((from, to)) => Ok(Self { from: from.trim().parse()?, to: to.trim().parse()? }),
            None => Err(Error::Circuit(format!("`{text}` is no edge; an edge is written a0.h1->a5.h3<k>"))),
        }
    }
}

/// As text in JSON.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }
        impl TryFrom<String> for $kind {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
    )*};
}
as_text!(Node, Reader, Edge);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_small_has_158_nodes_and_32491_edges() {
        let graph = Graph::of_sizes(12, 12, 12, 768, false);
        // The readers' `logits` is EAP-IG's last node.
        assert_eq!((graph.nodes().len() + 1, graph.len()), (158, 32_491));
        for (number, edge) in graph.edges().enumerate() {
            assert_eq!((graph.edge(number), graph.number(edge).unwrap()), (edge, number));
            assert_eq!(edge.to_string().parse::<Edge>().unwrap(), edge);
        }
    }

    #[test]
    fn grouped_heads_and_parallel_layers() {
        let graph = Graph::of_sizes(2, 4, 2, 8, true);
        let key = Reader::Head { layer: 1, head: 1, part: Part::Key };
        assert_eq!(graph.nodes_of(key), [Node::Head { layer: 1, head: 2 }, Node::Head { layer: 1, head: 3 }]);
        assert_eq!(graph.readers_of(Node::Head { layer: 1, head: 3 })[1], key);
        assert!(graph.number("a1.h0->m1".parse().unwrap()).is_err(), "both read the same stream");
        assert!(Graph::of_sizes(2, 4, 2, 8, false).number("a1.h0->m1".parse().unwrap()).is_ok());
    }

    #[test]
    fn what_is_no_edge_is_an_error() {
        for text in
            ["", "a0.h1", "a0.h1->", "a0->m1", "x->logits", "logits->m1", "m0->a1.h0", "m0->a1.h0<z>", "m-1->logits"]
        {
            assert!(text.parse::<Edge>().is_err(), "{text}");
        }
        let graph = Graph::of_sizes(2, 4, 2, 8, false);
        for text in ["m1->m0", "a0.h4->logits", "m0->a1.h3<k>", "m2->logits", "a1.h0->a1.h1<q>"] {
            assert!(graph.number(text.parse().unwrap()).is_err(), "{text}");
        }
    }
}
