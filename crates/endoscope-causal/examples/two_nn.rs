//! The dimension of the points of a file, timed: what `bench/two_nn.py` compares with scikit-dimension.
//!
//! `two_nn FILE.safetensors [NEIGHBOURS]`: the file's tensor `points` is `[point, dim]`; with neighbours it is the mean of the
//! dimensions around each point. Prints `{"dimension": …, "seconds": …}`; reading the file is not counted.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use candle_core::Device;
use endoscope_causal::dimension::{Points, TwoNn};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("say which file holds the points")?;
    let neighbours = arguments.next().map(|text| text.parse::<usize>()).transpose()?;
    let tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
    let points = tensors.get("points").ok_or("the file has no tensor `points`")?;
    let start = Instant::now();
    let (points, two_nn) = (Points::new(points)?, TwoNn::default());
    let dimension = match neighbours {
        None => two_nn.estimate(&points.log_ratios()?)?,
        Some(neighbours) => {
            let local: Vec<f64> = points.local(neighbours, &two_nn)?.into_iter().flatten().collect();
            local.iter().sum::<f64>() / local.len() as f64
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let document = serde_json::json!({"dimension": dimension, "seconds": seconds});
    writeln!(std::io::stdout(), "{document}")?;
    Ok(())
}
