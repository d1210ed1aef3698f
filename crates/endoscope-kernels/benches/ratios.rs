//! `cargo bench -p endoscope-kernels --bench ratios`: medians of interleaved runs, which a noisy machine disturbs alike.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod pairs;

use std::hint::black_box;
use std::time::{Duration, Instant};

const RUNS: usize = 60;

fn time(run: &dyn Fn() -> candle_core::Result<candle_core::Tensor>) -> Duration {
    let start = Instant::now();
    black_box(run().unwrap());
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn main() {
    println!("| operation | fused, µs | candle, µs | ratio |\n| --- | ---: | ---: | ---: |");
    for pair in pairs::pairs().unwrap() {
        let runs: Vec<_> = (0..RUNS).map(|_| (time(&*pair.fused), time(&*pair.candle))).collect();
        let (fused, candle): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
        let (fused, candle) = (median(fused), median(candle));
        println!("| {} | {fused:.0} | {candle:.0} | {:.1} |", pair.name, candle / fused);
    }
}
