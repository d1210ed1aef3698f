//! What each node of a graph writes to the residual stream in a run.

use candle_core::{Device, Tensor};
use endoscope_net::{Capture, Captured, Plan, Sites};

use crate::error::{Error, Result};
use crate::graph::Graph;

/// How far, of the largest value, what a layer's attention writes may be from one multiple of what its heads give together.
const ONE_FACTOR: f64 = 1e-5;

/// A plan that also captures what [`writes`] reads.
pub(crate) fn capturing_writes(plan: Plan, sites: &Sites) -> Plan {
    let kinds = ["hook_result", "hook_attn_out_raw", "hook_attn_out", "hook_mlp_out"];
    let read =
        |name: &str| name == "blocks.0.hook_resid_pre" || kinds.contains(&name.rsplit('.').next().unwrap_or(name));
    sites.iter().filter(|site| read(&site.name)).fold(plan, |plan, site| plan.capture(Capture::new(&site.name)))
}

/// A plan that also captures the streams that readers read.
pub(crate) fn capturing_streams(plan: Plan, sites: &Sites) -> Plan {
    let last = format!("blocks.{}.hook_resid_post", sites.layers().saturating_sub(1));
    let kinds = ["hook_resid_pre", "hook_resid_mid"];
    let read = |name: &str| kinds.contains(&name.rsplit('.').next().unwrap_or(name)) || name == last;
    let streams = sites.iter().filter(|site| read(&site.name));
    streams.fold(plan, |plan, site| match plan.captures.iter().any(|known| known.site == site.name) {
        true => plan,
        false => plan.capture(Capture::new(&site.name)),
    })
}

/// What each node writes: `[node, position, dim]`, of a run of one row.
///
/// An error where a norm lies between the heads and the stream: what one of them writes then depends on the others.
pub(crate) fn writes(graph: &Graph, captured: &Captured) -> Result<Tensor> {
    let of = |site: String| -> Result<Tensor> { Ok(captured.get(&site)?.squeeze(0)?) };
    let mut nodes = vec![of("blocks.0.hook_resid_pre".into())?.unsqueeze(0)?];
    for (layer, factor) in head_factors(graph, captured)?.into_iter().enumerate() {
        let heads = of(format!("blocks.{layer}.attn.hook_result"))?.transpose(0, 1)?.contiguous()?;
        nodes.push(if factor == 1. { heads } else { (heads * factor)? });
        nodes.push(of(format!("blocks.{layer}.hook_mlp_out"))?.unsqueeze(0)?);
    }
    Ok(Tensor::cat(&nodes, 0)?)
}

/// What the heads of each layer are multiplied by before they are added to the stream; an error as above.
pub(crate) fn head_factors(graph: &Graph, captured: &Captured) -> Result<Vec<f64>> {
    let of_layer = |layer: usize| {
        let of = |site: &str| captured.get(&format!("blocks.{layer}.{site}"));
        factor(of("hook_attn_out_raw")?, of("hook_attn_out")?)?.ok_or_else(|| {
            Error::Circuit(format!(
                "in layer {layer} a norm lies between the heads and the residual stream, so that what one head writes depends on \
                 the others; circuits of heads are not defined there (path patching is: endoscope patch --to)"
            ))
        })
    };
    (0..graph.layers).map(of_layer).collect()
}

/// The number that what is put out is multiplied by before it is added to the stream; none if there is no one number.
fn factor(raw: &Tensor, written: &Tensor) -> Result<Option<f64>> {
    let values = |x: &Tensor| -> Result<Vec<f64>> {
        Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    };
    let (raw, written) = (values(raw)?, values(written)?);
    if raw == written {
        return Ok(Some(1.));
    }
    let product: f64 = raw.iter().zip(&written).map(|(raw, written)| raw * written).sum();
    let factor = product / raw.iter().map(|raw| raw * raw).sum::<f64>();
    let largest = written.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let apart = raw.iter().zip(&written).map(|(raw, written)| (written - factor * raw).abs());
    Ok((apart.fold(0f64, f64::max) <= ONE_FACTOR * largest).then_some(factor))
}

/// The first position at which any of two runs' writes differ in a bit; the length where none does.
pub(crate) fn first_difference(difference: &Tensor) -> Result<usize> {
    let (_, positions, _) = difference.dims3()?;
    let largest = difference.abs()?.max(2)?.max(0)?.to_vec1::<f32>()?;
    Ok(largest.iter().position(|&largest| largest != 0.).unwrap_or(positions))
}

/// Where a tensor of gradients is zero everywhere: what nothing depends on.
pub(crate) fn zeros(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?)
}
