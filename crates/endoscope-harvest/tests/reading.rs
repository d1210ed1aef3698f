//! Reading: ranges, shuffled epochs, and shards that are not what was written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use endoscope_harvest::*;
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

fn harvested(settings: &Settings) -> TempDir {
    let directory = tempdir().unwrap();
    harvest_to(directory.path(), settings, &documents(60, 1)).unwrap();
    directory
}

fn flat(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_range_is_cut_out_of_the_whole() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let directory = harvested(&Settings { dtype, ..settings() });
        let reader = ActivationReader::open(directory.path()).unwrap();
        let rows = reader.rows(Per::Token);
        let whole = flat(&reader.read(STREAM, 0..rows).unwrap());
        let index = reader.tokens(0..rows).unwrap();
        assert_eq!(whole.len() as u64, 20 * rows);
        for range in [0..1, 3..3, 30..95, 39..41, rows - 1..rows, rows - 2..rows + 9, rows + 1..rows + 2] {
            let (first, last) = (range.start.min(rows) as usize, range.end.min(rows) as usize);
            let found = reader.read(STREAM, range.clone()).unwrap();
            assert_eq!(found.dims(), [last - first, 20]);
            assert_eq!(flat(&found), whole[first * 20..last * 20], "{range:?}");
            assert_eq!(reader.tokens(range).unwrap().token, index.token[first..last]);
        }
        if dtype == Dtype::F32 {
            continue;
        }
        let exact = harvested(&settings());
        let exact = flat(&ActivationReader::open(exact.path()).unwrap().read(STREAM, 0..rows).unwrap());
        let share = if dtype == Dtype::Bf16 { 2f32.powi(-8) } else { 2f32.powi(-11) };
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= share * a.abs() + 1e-7;
        assert!(exact != whole && exact.iter().zip(&whole).all(near), "{dtype:?}");
    }
}

#[test]
fn an_epoch_has_each_row_once_and_goes_on_from_any_batch() {
    let directory = harvested(&settings());
    let reader = ActivationReader::open(directory.path()).unwrap();
    let rows = reader.rows(Per::Token);
    let whole = flat(&reader.read(STREAM, 0..rows).unwrap());
    let z = flat(&reader.read("blocks.0.attn.hook_z", 0..rows).unwrap());
    let names = [STREAM, "blocks.0.attn.hook_z"];
    for (buffer_rows, batch_rows) in [(1, 1), (7, 16), (64, 10), (100, 100), (100_000, 33)] {
        let shuffle = Shuffle { seed: 5, buffer_rows, batch_rows };
        let mut stream = reader.shuffled(&names, shuffle).unwrap();
        let batches = stream.batches();
        let mut epochs = [Vec::new(), Vec::new()];
        let mut all = Vec::new();
        for number in 0..2 * batches {
            let batch = stream.next_batch().unwrap();
            assert_eq!((batch.cursor.epoch, batch.cursor.batch), (number / batches, number % batches));
            for (at, &row) in batch.rows.iter().enumerate() {
                let row = row as usize;
                assert_eq!(flat(&batch.values[0].get(at).unwrap()), whole[row * 20..(row + 1) * 20]);
                let width = z.len() / rows as usize;
                assert_eq!(flat(&batch.values[1].get(at).unwrap()), z[row * width..(row + 1) * width]);
            }
            epochs[(number / batches) as usize].extend(batch.rows.clone());
            all.push(batch.rows);
        }
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..rows).collect::<Vec<_>>(), "buffer {buffer_rows}, batch {batch_rows}");
        }
        assert_ne!(epochs[0], epochs[1]);
        for number in (0..2 * batches).step_by(3) {
            let mut other = reader.shuffled(&names[..1], shuffle).unwrap();
            other.seek(ShuffleCursor { epoch: number / batches, batch: number % batches }).unwrap();
            for expected in &all[number as usize..] {
                assert_eq!(&other.next_batch().unwrap().rows, expected);
            }
        }
        let mut other = reader.shuffled(&names, Shuffle { seed: 6, ..shuffle }).unwrap();
        assert_ne!(other.next_batch().unwrap().rows, all[0].clone(), "another seed, another order");
    }
}

/// What "mixed" means: the rows of a batch come from all over the harvest, and neighbours do not stay together.
#[test]
fn a_batch_mixes_rows_from_all_over() {
    let directory = tempdir().unwrap();
    let output = Output { site: STREAM.into(), reduction: Reduction::Tokens };
    let settings = Settings { outputs: vec![output], shard_rows: Some(500), batch_tokens: 600, ..settings() };
    harvest_to(directory.path(), &settings, &documents(1500, 9)).unwrap();
    let reader = ActivationReader::open(directory.path()).unwrap();
    let rows = reader.rows(Per::Token);
    let shuffle = Shuffle { seed: 1, buffer_rows: rows as usize / 8, batch_rows: 256 };
    for batch in reader.shuffled(&[STREAM], shuffle).unwrap().take(8) {
        let batch = batch.unwrap();
        let mean = batch.rows.iter().sum::<u64>() as f64 / 256.;
        let middle = (rows - 1) as f64 / 2.;
        assert!((mean / middle - 1.).abs() < 0.5, "the mean row of a batch is {mean} of {rows}");
        let together = batch.rows.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
        assert!(together < 16, "{together} of 255 rows are followed by their neighbour");
    }
}

#[test]
fn what_cannot_be_read_together_is_refused() {
    let directory = harvested(&settings());
    let reader = ActivationReader::open(directory.path()).unwrap();
    let shuffle = Shuffle { seed: 0, buffer_rows: 8, batch_rows: 8 };
    let mean = format!("{STREAM}.mean");
    for (names, shuffle, part) in [
        (vec!["blocks.1.hook_resid_prr"], shuffle, "it has blocks.1.hook_resid_pre,"),
        (vec![STREAM, &mean], shuffle, "rows of different things"),
        (vec![], shuffle, "no output"),
        (vec![STREAM], Shuffle { buffer_rows: 0, ..shuffle }, "no rows"),
    ] {
        let error = reader.shuffled(&names, shuffle).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(ActivationReader::open(directory.path().join("no")).unwrap_err().to_string().contains("not there"));
}

fn flip(path: &Path, at: usize, bits: u8) {
    let mut bytes = fs::read(path).unwrap();
    let at = if at < bytes.len() { at } else { bytes.len() - 1 };
    bytes[at] ^= bits;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_is_found_and_named() {
    let shard = "shard-000001.safetensors";
    let check = |damage: &dyn Fn(&Path), part: &str| {
        let directory = harvested(&settings());
        damage(&directory.path().join(shard));
        let error = match ActivationReader::open(directory.path()) {
            Err(error) => error,
            Ok(reader) => reader.verify(|_| Ok(())).unwrap_err(),
        };
        assert!(matches!(error, Error::Shard { .. }), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(shard) && error.contains(part) && error.contains("run the same harvest again"),
            "{error}"
        );
    };
    check(&|path| flip(path, usize::MAX, 1), "its SHA-256 is");
    check(&|path| flip(path, 7, 0x80), "its header is said to have");
    check(&|path| flip(path, 8, 1), "its header cannot be read");
    check(&|path| fs::remove_file(path).unwrap(), "not there");
    check(&|path| fs::write(path, "short").unwrap(), "has 5 bytes");
    let replaced = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            let bytes = fs::read(path).unwrap();
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            fs::write(path, [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()).unwrap();
        }
    };
    check(&replaced("\"dtype\":\"F32\"", "\"dtype\":\"I32\""), "is I32, and harvest.json says F32");
    check(&replaced("\"token\"", "\"tokem\""), "no tensor `token`");
    // The same numbers in another shape.
    let directory = harvested(&settings());
    let path = directory.path().join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap().replacen("\"dtype\": \"f32\"", "\"dtype\": \"bf16\"", 1);
    fs::write(&path, text).unwrap();
    let error = ActivationReader::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("is F32, and harvest.json says BF16"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a byte is turned into, reading gives an error or rows, and never ends the program.
    #[test]
    fn any_byte_may_be_wrong(file in 0usize..3, place in 0.0f64..1., bits in 1u8..) {
        use std::sync::LazyLock;
        static HARVEST: LazyLock<TempDir> = LazyLock::new(|| harvested(&settings()));
        let directory = tempdir().unwrap();
        for (name, bytes) in contents(HARVEST.path()) {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        let name = [MANIFEST, "shard-000000.safetensors", "shard-000002.safetensors"][file];
        let path = directory.path().join(name);
        let length = fs::metadata(&path).unwrap().len() as f64;
        // Half of the places lie in the header.
        let at = if bits % 2 == 0 { place * length.min(600.) } else { place * length };
        flip(&path, at as usize, bits);
        if let Ok(reader) = ActivationReader::open(directory.path()) {
            let rows = reader.rows(Per::Token);
            for output in reader.manifest().outputs.clone() {
                let _ = reader.read(&output.name, 0..rows);
                let shuffle = Shuffle { seed: 0, buffer_rows: 32, batch_rows: 9 };
                if let Ok(stream) = reader.shuffled(&[&output.name], shuffle) {
                    let _ = stream.take(5).collect::<Result<Vec<_>>>();
                }
            }
            if file > 0 {
                prop_assert!(reader.verify(|_| Ok(())).is_err());
            }
        }
    }
}
