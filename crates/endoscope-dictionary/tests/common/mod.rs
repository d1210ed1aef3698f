//! Tiny models, and dictionaries for them.

use std::path::Path;

use endoscope_dictionary::{Config, Dictionary, Matrix, Weights, site_width};
use endoscope_models::Model;
use endoscope_net::{Inputs, Network, Plan};

/// One of the tiny models.
pub fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name);
    Model::open(folder).unwrap()
}

/// Five rows of six or seven tokens.
pub fn rows(network: &dyn Network) -> Vec<Vec<u32>> {
    let vocabulary = network.run(&Inputs::tokens(vec![vec![0]]).unwrap(), &Plan::default()).unwrap().outputs.dims()[2];
    let token = |at: usize| ((at * 7919 + 13) % vocabulary) as u32;
    (0..5).map(|row| (0..6 + row % 2).map(|at| token(row * 10 + at)).collect()).collect()
}

/// Two latents a dimension, one for each sign: what it reads comes back whole.
pub fn whole(site: &str, width: usize) -> Dictionary {
    let mut both = Matrix::zeros(2 * width, width);
    for at in 0..width {
        both.row_mut(at)[at] = 1.;
        both.row_mut(width + at)[at] = -1.;
    }
    let weights = Weights {
        encoder: both.clone(),
        encoder_bias: vec![0.; 2 * width],
        decoder: both,
        decoder_bias: vec![0.; width],
        ..Weights::default()
    };
    Dictionary::new(Config { sites: vec![site.into()], ..Config::default() }, weights).unwrap()
}

/// The width of vectors at a site.
pub fn width(network: &dyn Network, site: &str) -> usize {
    site_width(network.sites().get(network.sites().resolve(site).unwrap()[0]))
}
