//! Transcoders in the places of a network's MLPs.

use std::sync::Arc;

use candle_core::Tensor;
use endoscope_net::Network;

use crate::config::Normalization;
use crate::cross_layer::CrossLayerTranscoder;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

/// A transcoder for each of some layers: what its features write, its layer's MLP writes, or MLPs of the layers above do so too.
#[derive(Debug, Clone)]
pub struct Transcoders {
    /// In the order of layers.
    pub(super) layers: Vec<Layer>,
}

/// One of them in its place.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub layer: usize,
    /// The site that it reads.
    pub input: String,
    /// The site that its layer's MLP writes.
    pub output: String,
    /// The width of `output`.
    pub width: usize,
    /// It writes one vector or several of this width beside each other: to `output`, and to those of the layers after it.
    pub transcoder: Arc<Dictionary>,
    /// `[width, d_in]`: a linear way from `input` to `output`.
    pub skip: Option<Tensor>,
}

impl Transcoders {
    /// Of each layer by itself, one a layer, with a skip or without.
    ///
    /// # Errors
    /// If one is no transcoder of sites of one layer of `network`, or not linear but for its latents; if a layer has two.
    pub fn new(network: &dyn Network, transcoders: Vec<Dictionary>) -> Result<Self> {
        let mut layers = placed(network, transcoders, |_| 1)?;
        layers.sort_by_key(|layer| layer.layer);
        match layers.windows(2).find(|two| two[0].layer == two[1].layer) {
            _ if layers.is_empty() => Err(Error::Config("there is no transcoder".into())),
            Some(two) => Err(Error::Config(format!("layer {} has two transcoders", two[0].layer))),
            None => Ok(Self { layers }),
        }
    }

    /// Across layers: a feature of layer `i` writes to the MLPs of the layers from `i` on.
    ///
    /// # Errors
    /// As for [`Transcoders::new`], and if layers are left out.
    pub fn cross_layer(network: &dyn Network, transcoder: CrossLayerTranscoder) -> Result<Self> {
        let count = transcoder.layers().len();
        let layers = placed(network, transcoder.into_layers(), |number| count - number)?;
        match layers.iter().enumerate().find(|(number, layer)| layer.layer != *number) {
            Some((number, layer)) => Err(Error::Config(format!(
                "layer {number} of the cross-layer transcoder writes {}, which is not of that layer",
                layer.output
            ))),
            None => Ok(Self { layers }),
        }
    }

    /// The layers that have one.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().map(|layer| layer.layer)
    }

    /// That of the `number`-th of these layers.
    pub fn get(&self, number: usize) -> &Dictionary {
        &self.layers[number].transcoder
    }

    /// Whether a layer's features write to this site.
    pub(super) fn write_to(&self, site: &str) -> bool {
        self.layers.iter().any(|layer| layer.output == site)
    }
}

/// Each in its layer; that of number `i` writes `blocks(i)` vectors.
fn placed(network: &dyn Network, transcoders: Vec<Dictionary>, blocks: impl Fn(usize) -> usize) -> Result<Vec<Layer>> {
    let in_place = |(number, transcoder): (usize, Dictionary)| {
        let fail = |reason: String| Err(Error::Config(reason));
        let config = transcoder.config();
        let (Some(output), [input]) = (&config.output_site, config.sites.as_slice()) else {
            return fail("attribution graphs need transcoders, which read one site and write another".into());
        };
        if config.normalization != Normalization::None {
            return fail("a transcoder that rescales its input is not linear in it".into());
        }
        let sites = network.sites();
        let (input, output) = (sites.get(sites.resolve_one(input)?), sites.get(sites.resolve_one(output)?));
        let (Some(layer), true) = (output.layer, input.layer == output.layer) else {
            return fail(format!("{} and {} are not sites of one layer", input.name, output.name));
        };
        transcoder.check_site(input)?;
        let (width, blocks) = (crate::site_width(output), blocks(number));
        if transcoder.d_out() != blocks * width {
            let found = transcoder.d_out();
            return fail(format!(
                "the transcoder of {} writes {found} dimensions, not {blocks} · {width}",
                output.name
            ));
        }
        let skip = transcoder.weights().skip.as_ref().map(|skip| skip.tensor()).transpose()?;
        let (input, output) = (input.name.clone(), output.name.clone());
        Ok(Layer { layer, input, output, width, transcoder: Arc::new(transcoder), skip })
    };
    transcoders.into_iter().enumerate().map(in_place).collect()
}
