//! The verbs.

mod align;
mod attribute;
mod bench;
mod capture;
mod circuit;
mod demo;
mod dict;
mod dimension;
mod generate;
mod harvest;
mod heads;
mod inspect;
mod knockout;
mod lens;
mod organisms;
mod patch;
mod probe;
mod study;
mod train;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::output::Output;

/// A verb with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What a model is: family, sizes, parameters, sites.
    Inspect(inspect::Inspect),
    /// Activations of chosen sites for prompts, as a safetensors file.
    Capture(capture::Capture),
    /// Activations of a corpus to a folder of shards, or a harvest to another place.
    Harvest(harvest::Harvest),
    /// Text, with a plan applied if given.
    Generate(generate::Generate),
    /// An activation-patching sweep between clean and corrupt prompts.
    Patch(patch::Patch),
    /// Where every head looks, and what it takes from there.
    Heads(heads::Heads),
    /// Which layers bring what a prompt says at some positions to others: attention edges cut around each layer.
    Knockout(knockout::KnockoutVerb),
    /// Which parts matter: direct attribution, gradients, attribution patching, edges.
    Attribute(attribute::Attribute),
    /// A circuit found, pruned, drawn and tested.
    Circuit(circuit::FindCircuit),
    /// What can be read from each layer along a direction: linear probes with their controls.
    Probe(probe::ProbeVerb),
    /// How many dimensions the activations of each layer fill, beside Gaussian points of the same covariance.
    Dimension(dimension::DimensionVerb),
    /// What each layer would say now: logit, tuned and Jacobian lens.
    Lens(lens::Lens),
    /// Where a variable lives: a mask or a subspace trained on counterfactual triples.
    Align(align::Align),
    /// Papers' methods as runnable studies: list, show, run.
    Study(study::StudyVerb),
    /// Dictionaries: train, evaluate, read features, attribution graphs.
    Dict(dict::DictVerb),
    /// A recipe to a model, with checkpoints.
    Train(train::Train),
    /// The whole story on the shipped organism: prediction, heads, patching, ablation and its control.
    Demo(demo::Demo),
    /// The small models of ours with known mechanisms: a list, or one written out with its prompt pairs.
    Organisms(organisms::Organisms),
    /// A model's certificate: everything about it that can be checked, checked. Or a dictionary's, on the activations of its model.
    Verify(verify::Verify),
    /// Timings of every kind of work, and their share of what the machine can do.
    Bench(bench::Bench),
}

impl Command {
    pub fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::Inspect(verb) => verb.run(output),
            Self::Capture(verb) => verb.run(output),
            Self::Harvest(verb) => verb.run(output),
            Self::Generate(verb) => verb.run(output),
            Self::Patch(verb) => verb.run(output),
            Self::Heads(verb) => verb.run(output),
            Self::Knockout(verb) => verb.run(output),
            Self::Attribute(verb) => verb.run(output),
            Self::Circuit(verb) => verb.run(output),
            Self::Probe(verb) => verb.run(output),
            Self::Dimension(verb) => verb.run(output),
            Self::Lens(verb) => verb.run(output),
            Self::Align(verb) => verb.run(output),
            Self::Study(verb) => verb.run(output),
            Self::Dict(verb) => verb.run(output),
            Self::Train(verb) => verb.run(output),
            Self::Demo(verb) => verb.run(output),
            Self::Organisms(verb) => verb.run(output),
            Self::Verify(verb) => verb.run(output),
            Self::Bench(verb) => verb.run(output),
        }
    }
}
