//! A fuzzed harvest.json beside a real shard, or a real one beside a fuzzed shard: opened, read, shuffled.
#![no_main]

use endoscope_harvest::{ActivationReader, Per, Shuffle};
use libfuzzer_sys::fuzz_target;

const MANIFEST: &[u8] = include_bytes!("../seeds/harvest/manifest");
const SHARD: &[u8] = include_bytes!("../seeds/harvest/shard");

fuzz_target!(|input: &[u8]| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // A shard begins with the length of its header, whose last bytes are 0.
    let (manifest, shard) = if input.first() == Some(&b'{') { (input, SHARD) } else { (MANIFEST, input) };
    std::fs::write(directory.path().join("harvest.json"), manifest).expect("a full disk");
    std::fs::write(directory.path().join("shard-000000.safetensors"), shard).expect("a full disk");
    let Ok(reader) = ActivationReader::open(directory.path()) else { return };
    for output in &reader.manifest().outputs {
        let _ = reader.read(&output.name, 0..1000);
        let shuffle = Shuffle { seed: 0, buffer_rows: 64, batch_rows: 16 };
        if let Ok(stream) = reader.shuffled(&[&output.name], shuffle) {
            let _ = stream.take(4).count();
        }
    }
    let _ = (reader.tokens(0..reader.rows(Per::Token)), reader.verify(|_| Ok(())));
});
