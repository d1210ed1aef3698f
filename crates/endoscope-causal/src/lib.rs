//! Which parts of a network matter: prompt pairs, metrics, activation-patching sweeps and their planner, head
//! detectors.
//!
//! For whoever asks a network "which part does this?". Everything here sees only [`endoscope_net`]: it works on every
//! network that implements [`endoscope_net::Resume`].
//!
//! ```no_run
//! use endoscope_causal::*;
//! # fn network() -> Box<dyn endoscope_net::Resume> { unimplemented!() }
//! let network = network();
//! let pair = Pair { clean: vec![1, 7, 4], corrupt: vec![1, 8, 4], answers: vec![7], wrong_answers: vec![8] };
//! let patching = Sweep {
//!     site: "resid_pre".into(),
//!     over: vec![SweepAxis::Layer, SweepAxis::Position],
//!     metric: Metric::LogitDiff,
//!     direction: Direction::Denoise,
//!     neuron_block: 1,
//! };
//! let scores = sweep(&*network, &patching, &[pair], Planner::default(), |_| std::ops::ControlFlow::Continue(()))?;
//! println!("{:?}", scores.normalised);
//! # Ok::<(), endoscope_causal::Error>(())
//! ```
//!
//! A sweep is data ([`Sweep`]); the planner turns its points into batches; `run` runs them. Not here: any model, any
//! file but prompt files, any rendering.

#![forbid(unsafe_code)]

mod accuracy;
mod error;
mod heads;
mod metric;
mod planner;
mod prompts;
mod run;
mod sweep;

pub use accuracy::{Accuracy, accuracy};
pub use error::{Error, Result};
pub use heads::{HeadScore, head_scores};
pub use metric::{Metric, Target};
pub use planner::Planner;
pub use prompts::{Answers, Encode, Pair, Pairs, Written, WrittenPair, parse as parse_prompts};
pub use run::{Progress, sweep};
pub use sweep::{Direction, PairScores, ScoreAxis, Scores, Sweep, SweepAxis};
