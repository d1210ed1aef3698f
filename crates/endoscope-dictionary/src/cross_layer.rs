//! Cross-layer transcoders: latents that read one layer and write this one and all above (Ameisen et al. 2025,
//! transformer-circuits.pub/2025/attribution-graphs/methods.html).

use endoscope_kernels::sparse::SparseRows;

use crate::dictionary::{Codes, Dictionary};
use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// One transcoder for each layer. That of layer `i` of `n` writes `n - i` vectors beside each other: first what it adds to its
/// own layer's output, then to those above.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossLayerTranscoder {
    layers: Vec<Dictionary>,
    width: usize,
}

impl CrossLayerTranscoder {
    /// Checks that the layers' widths fit each other, and that none has a skip.
    pub fn new(layers: Vec<Dictionary>) -> Result<Self> {
        let width = layers.last().map(Dictionary::d_out).ok_or_else(|| Error::Config("it has no layers".into()))?;
        for (layer, transcoder) in layers.iter().enumerate() {
            let expected = (layers.len() - layer).checked_mul(width);
            if Some(transcoder.d_out()) != expected {
                let expected = vec![transcoder.latents(), layers.len() - layer, width];
                let found = vec![transcoder.latents(), transcoder.d_out()];
                return Err(Error::Shape { name: "W_dec", found, expected });
            }
            if transcoder.weights().skip.is_some() {
                return Err(Error::Config(format!("layer {layer} of the cross-layer transcoder has a skip")));
            }
        }
        Ok(Self { layers, width })
    }

    /// The transcoder of each layer.
    pub fn layers(&self) -> &[Dictionary] {
        &self.layers
    }

    /// The transcoder of each layer, without a copy.
    pub fn into_layers(self) -> Vec<Dictionary> {
        self.layers
    }

    /// The width of what each layer writes.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The latents of each layer, of what it reads: one `[rows, d]` a layer.
    pub fn encode(&self, inputs: &[Matrix]) -> Result<Vec<SparseRows>> {
        self.check(inputs.len())?;
        self.layers.iter().zip(inputs).map(|(layer, x)| Ok(layer.encode(x)?.latents)).collect()
    }

    /// What all latents together write to each layer's output, `[rows, d]` a layer: `y_l = Σ_{i ≤ l} W_dec^{i→l} a^i + b_dec^l`.
    pub fn decode(&self, latents: &[SparseRows]) -> Result<Vec<Matrix>> {
        self.check(latents.len())?;
        let rows = latents.first().map_or(0, SparseRows::rows);
        let mut outputs = vec![Matrix::zeros(rows, self.width); self.layers.len()];
        for (from, (layer, latents)) in self.layers.iter().zip(latents).enumerate() {
            if latents.rows() != rows || latents.width() != layer.latents() {
                let reason = format!("layer {from} has latents of {} rows, layer 0 of {rows}", latents.rows());
                return Err(Error::Activations(reason));
            }
            let written = layer.decode(&Codes { latents: latents.clone(), rescaled: None });
            for row in 0..rows {
                let parts = written.row(row).chunks_exact(self.width.max(1));
                for (output, part) in outputs[from..].iter_mut().zip(parts) {
                    output.row_mut(row).iter_mut().zip(part).for_each(|(out, x)| *out += x);
                }
            }
        }
        Ok(outputs)
    }

    /// What it makes of the inputs of all layers.
    pub fn reconstruct(&self, inputs: &[Matrix]) -> Result<Vec<Matrix>> {
        self.decode(&self.encode(inputs)?)
    }

    fn check(&self, given: usize) -> Result<()> {
        match given == self.layers.len() {
            true => Ok(()),
            false => {
                Err(Error::Activations(format!("{given} layers of them, the transcoder has {}", self.layers.len())))
            }
        }
    }
}
