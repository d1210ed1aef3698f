//! `cargo bench -p endoscope-kernels --bench kernels`: each kernel and candle's own, by criterion.
#![allow(missing_docs, clippy::unwrap_used)]

mod pairs;

use criterion::{Criterion, criterion_group, criterion_main};

fn kernels(criterion: &mut Criterion) {
    for pair in pairs::pairs().unwrap() {
        let mut group = criterion.benchmark_group(pair.name);
        group.bench_function("fused", |bencher| bencher.iter(|| (pair.fused)().unwrap()));
        group.bench_function("candle", |bencher| bencher.iter(|| (pair.candle)().unwrap()));
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
