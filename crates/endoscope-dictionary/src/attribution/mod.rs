//! Attribution graphs: which features of a prompt make which others, and the answer (Ameisen et al. 2025,
//! transformer-circuits.pub/2025/attribution-graphs/methods.html).
//!
//! Transcoders stand in for MLPs, attention patterns and the divisors of norms are held as they were, and what transcoders do not
//! explain enters as error nodes. Then each feature's activation, where it stays active, and each logit is a linear function of the
//! nodes before it: an edge is the source's activation times the gradient of the target along what the source writes. [`measure`] makes the
//! same change by running it.
//!
//! A feature of a cross-layer transcoder is one node that writes in several layers. The skip of a skip transcoder (Paulo et al.
//! 2025, arXiv 2501.18823) is linear in what it reads: edges lead through it, and it is no node.

mod frozen;
mod graph;
mod json;
mod prune;
mod trace;
mod transcoders;

pub use frozen::Frozen;
pub use graph::{Edges, Feature, Graph, GraphSettings, Node, attribute, measure, value_without};
pub use json::{GraphNames, graph_json};
pub use prune::{Pruned, prune};
pub use transcoders::Transcoders;
