//! Which parts of a network matter: prompt pairs, metrics, activation-patching sweeps and their planner, attention knockout,
//! where heads look, lenses, linear probes, intrinsic dimension, and the statistics that say how sure all of it is.
//!
//! For whoever asks a network "which part does this?". Everything here sees only [`endoscope_net`]: it works on every
//! network that implements [`endoscope_net::Resume`].
//!
//! ```no_run
//! use endoscope_causal::*;
//! # fn network() -> Box<dyn endoscope_net::Resume> { unimplemented!() }
//! let network = network();
//! let pair = Pair { clean: vec![1, 7, 4], corrupt: vec![1, 8, 4], answers: vec![7], wrong_answers: vec![8] };
//! let patching = Sweep::new("resid_pre", [SweepAxis::Layer, SweepAxis::Position]);
//! let scores = sweep(&*network, &patching, &[pair], Planner::default(), |_| std::ops::ControlFlow::Continue(()))?;
//! println!("{:?}", scores.normalised);
//! # Ok::<(), endoscope_causal::Error>(())
//! ```
//!
//! A sweep is data ([`Sweep`]); its points become plans, the planner puts them into batches, and the network runs those.
//! Not here: any model, any file but prompt files and lenses, any rendering.

#![forbid(unsafe_code)]

mod accuracy;
mod alignment;
mod change;
mod circuit;
mod circuit_file;
mod circuit_measures;
mod circuit_run;
mod circuit_search;
pub mod dimension;
mod direct;
mod edges;
mod error;
mod estimate;
mod graph;
mod heads;
mod knockout;
pub mod length;
pub mod lens;
mod looks;
mod metric;
mod pairs;
mod path;
mod path_run;
mod places;
mod planner;
pub mod probe;
mod prompts;
mod run;
mod scores;
pub mod statistics;
mod sweep;
mod writes;

pub use accuracy::{Accuracy, accuracy};
pub use alignment::{
    Aligned, Alignment, AlignmentScore, Find, FoundSite, Gate, Intervention, Objective, Outcome, Triple, Triples,
    WrittenTriple, align, parse_triples,
};
pub use change::SweepChange;
pub use circuit::{Choice, Circuit};
pub use circuit_file::{from_json as circuit_from_json, to_json as circuit_to_json};
pub use circuit_measures::{Curve, CurvePoint, Measures, SHARES, curve, measure, random_faithfulness, random_scores};
pub use circuit_run::{Ablation, CircuitRuns};
pub use circuit_search::{Found, acdc};
pub use direct::{Component, DirectExchange, DirectScores, direct, direct_exchange};
pub use edges::{EdgeMethod, EdgeScores, EdgeSweep, edge_scores};
pub use error::{Error, Result};
pub use estimate::{Estimate, estimate};
pub use graph::{Edge, Graph, Node, Part, Reader};
pub use heads::{HeadScore, head_scores};
pub use knockout::{Cut, Knockout, KnockoutHeads, KnockoutPrompt, KnockoutScores, knockout};
pub use looks::{AllLooks, HeadLooks, Looks, head_looks, repeated_tokens};
pub use metric::{Metric, Target, log_softmax};
pub use pairs::Progress;
pub use path::{PathNorm, PathScores, PathSweep, Receiver, Sender};
pub use path_run::path_sweep;
pub use planner::{Memory, Planner, SweepCost};
pub use prompts::{Answers, Encode, Pair, Pairs, Written, WrittenPair, parse as parse_prompts};
pub use run::{explain, explain_across, sweep, sweep_across};
pub use scores::{PairScores, ScoreAxis, Scores};
pub use sweep::{Align, Direction, Sweep, SweepAxis};
