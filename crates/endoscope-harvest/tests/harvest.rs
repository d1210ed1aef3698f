//! Writing: what a shard holds, going on after any end, and every fault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;

use common::*;
use endoscope_harvest::*;
use endoscope_net::{Capture, Index, Inputs, Network, Plan};
use tempfile::tempdir;

/// Rows are those of the network on each sequence alone, whatever ran together.
#[test]
fn rows_are_what_the_network_gives_for_each_sequence() {
    let corpus = documents(40, 1);
    for mode in [SequenceMode::Blocks, SequenceMode::Examples] {
        let packing = Packing { mode, separator: None, ..settings().packing };
        let settings = Settings { packing, ..settings() };
        let directory = tempdir().unwrap();
        let harvested = harvest_to(directory.path(), &settings, &corpus).unwrap();
        let reader = ActivationReader::open(directory.path()).unwrap();
        let (mut row, mut sequence_row) = (0, 0);
        let sequences = Sequences::new(packing, corpus.iter().cloned().map(Ok), Cursor::default()).unwrap();
        for sequence in sequences.map(Result::unwrap) {
            let plan =
                ["blocks.*.hook_resid_pre", "z.0"].into_iter().map(Capture::new).fold(Plan::default(), Plan::capture);
            let run = MODEL.decoder.run(&Inputs::tokens(vec![sequence.tokens.clone()]).unwrap(), &plan).unwrap();
            let stream = run.captured.get(STREAM).unwrap().squeeze(0).unwrap();
            let z = run.captured.get("blocks.0.attn.hook_z").unwrap().squeeze(0).unwrap().flatten_from(1).unwrap();
            let kept: Vec<usize> = (0..sequence.tokens.len()).filter(|&at| sequence.tokens[at] != 0).collect();
            for &position in &kept {
                let index = reader.tokens(row..row + 1).unwrap();
                assert_eq!(index.document, [sequence.documents[position] as i64]);
                assert_eq!(index.sequence, [sequence.number as i64]);
                assert_eq!(index.position, [position as i64]);
                assert_eq!(index.token, [i64::from(sequence.tokens[position])]);
                for (name, expected) in [(STREAM, &stream), ("blocks.0.attn.hook_z", &z)] {
                    let found = reader.read(name, row..row + 1).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
                    assert_eq!(found, expected.get(position).unwrap().to_vec1::<f32>().unwrap(), "{name}");
                }
                row += 1;
            }
            let Some(&last) = kept.last() else { continue };
            let index = reader.sequences(sequence_row..sequence_row + 1).unwrap();
            assert_eq!((index.number[0], index.tokens[0]), (sequence.number as i64, kept.len() as i64));
            let found = reader.read(&format!("{STREAM}.last"), sequence_row..sequence_row + 1).unwrap();
            assert_eq!(found.to_vec2::<f32>().unwrap()[0], stream.get(last).unwrap().to_vec1::<f32>().unwrap());
            let found = reader.read(&format!("{STREAM}.mean"), sequence_row..sequence_row + 1).unwrap();
            let rows = stream.to_vec2::<f32>().unwrap();
            for (dim, found) in found.to_vec2::<f32>().unwrap()[0].iter().enumerate() {
                let sum: f64 = kept.iter().map(|&at| f64::from(rows[at][dim])).sum();
                assert_eq!(*found, (sum / kept.len() as f64) as f32);
            }
            sequence_row += 1;
        }
        assert_eq!((reader.rows(Per::Token), reader.rows(Per::Sequence)), (row, sequence_row));
        assert!(harvested.manifest.shards.len() > 3 && row > 100, "{row} rows in {}", harvested.manifest.shards.len());
        reader.verify(|_| Ok(())).unwrap();
    }
}

#[test]
fn what_runs_together_changes_no_byte() {
    let corpus = documents(60, 2);
    let made = [1, 7, 1000].into_iter().map(|batch_tokens| {
        let directory = tempdir().unwrap();
        harvest_to(directory.path(), &Settings { batch_tokens, ..settings() }, &corpus).unwrap();
        contents(directory.path())
    });
    let made: Vec<_> = made.collect();
    assert!(made[0] == made[1] && made[1] == made[2]);
}

#[test]
fn an_end_at_any_batch_loses_nothing() {
    let corpus = documents(60, 3);
    let whole = tempdir().unwrap();
    harvest_to(whole.path(), &settings(), &corpus).unwrap();
    let batches = std::cell::Cell::new(0);
    harvest_watched(tempdir().unwrap().path(), &settings(), &corpus, &mut |_| {
        batches.set(batches.get() + 1);
        Ok(())
    })
    .unwrap();
    assert!(batches.get() > 10);
    for stop in 1..=batches.get() {
        let directory = tempdir().unwrap();
        let mut left = stop;
        // It ends again and again, until it has come through.
        let mut runs = 0;
        while let Err(error) = harvest_watched(directory.path(), &settings(), &corpus, &mut |_| {
            left -= 1;
            if left > 0 { Ok(()) } else { Err(Error::Interrupted) }
        }) {
            assert!(matches!(error, Error::Interrupted), "{error}");
            assert!(matches!(ActivationReader::open(directory.path()), Err(Error::Incomplete { .. })));
            // What a kill leaves: a part of a shard, and a shard that nobody knows of.
            fs::write(directory.path().join(".endoscope.partial-x"), "part").unwrap();
            fs::write(directory.path().join("shard-000099.safetensors"), "unknown").unwrap();
            runs += 1;
            left = batches.get();
        }
        assert!(runs > 0);
        assert!(contents(directory.path()) == contents(whole.path()), "stopped after {stop} batches");
    }
}

#[test]
fn shards_that_are_gone_are_made_again() {
    let corpus = documents(60, 4);
    let directory = tempdir().unwrap();
    let harvested = harvest_to(directory.path(), &settings(), &corpus).unwrap();
    let before = contents(directory.path());
    let path = |number: usize| directory.path().join(&harvested.manifest.shards[number].file);
    fs::remove_file(path(0)).unwrap();
    fs::write(path(2), "cut short").unwrap();
    fs::remove_file(path(harvested.manifest.shards.len() - 1)).unwrap();
    let error = ActivationReader::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("shard-000000") && error.contains("run the same harvest again"), "{error}");
    let again = harvest_to(directory.path(), &settings(), &corpus).unwrap();
    assert_eq!(again.found, harvested.manifest.shards.len() - 3);
    assert!(contents(directory.path()) == before);
    // Nothing is left to do.
    let idle = harvest_watched(directory.path(), &settings(), &corpus, &mut |_| panic!("it ran")).unwrap();
    assert_eq!(idle.found, idle.manifest.shards.len());
}

#[test]
fn a_harvest_goes_on_only_as_it_began() {
    let corpus = documents(30, 5);
    let directory = tempdir().unwrap();
    harvest_to(directory.path(), &settings(), &corpus).unwrap();
    let packing = settings().packing;
    for (changed, what) in [
        (Settings { dtype: Dtype::F16, ..settings() }, "dtype = \"f32\", and now it is \"f16\""),
        (Settings { packing: Packing { context: 7, ..packing }, ..settings() }, "packing.context = 6"),
        (Settings { source: serde_json::json!({"test": false}), ..settings() }, "source.test = true"),
        (Settings { shard_rows: Some(41), ..settings() }, "shard_rows = 40"),
        (Settings { exclude: [].into(), ..settings() }, "exclude"),
        (Settings { outputs: settings().outputs[..1].to_vec(), ..settings() }, "outputs"),
        (Settings { max_tokens: Some(9), ..settings() }, "max_tokens = null"),
    ] {
        let error = harvest_to(directory.path(), &changed, &corpus).unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    // What changes no byte may change.
    let other = Settings { batch_tokens: 3, non_finite: NonFinite::Allow, ..settings() };
    harvest_to(directory.path(), &other, &corpus).unwrap();
}

#[test]
fn a_harvest_ends_where_it_is_told() {
    let corpus = documents(60, 6);
    let directory = tempdir().unwrap();
    let short = Settings { max_tokens: Some(100), ..settings() };
    let harvested = harvest_to(directory.path(), &short, &corpus).unwrap();
    assert_eq!(harvested.manifest.tokens(), 102, "the first block by which 100 tokens were run");
    let whole = tempdir().unwrap();
    harvest_to(whole.path(), &settings(), &corpus).unwrap();
    let (short, whole) = (contents(directory.path()), contents(whole.path()));
    assert!(short[1] == whole[1], "the first shard is the same");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let corpus = documents(10, 7);
    let output = |site: &str| vec![Output { site: site.into(), reduction: Reduction::Tokens }];
    let probe = ProbeScores { directions: vec![vec![1.; 3]], biases: vec![0.] };
    let probe = vec![Output { site: STREAM.into(), reduction: Reduction::Probe(probe) }];
    for (settings, part) in [
        (Settings { outputs: Vec::new(), ..settings() }, "at least one site"),
        (Settings { outputs: [output(STREAM), output(STREAM)].concat(), ..settings() }, "asked for twice"),
        (Settings { outputs: output("blocks.1.hook_resid_pree"), ..settings() }, "blocks.1.hook_resid_pre"),
        (Settings { outputs: output("pattern.0"), ..settings() }, "no row of numbers at each position"),
        (Settings { outputs: probe, ..settings() }, "directions of [3]"),
        (Settings { packing: Packing { context: 1, ..settings().packing }, ..settings() }, "holds nothing"),
        (Settings { batch_tokens: 0, ..settings() }, "size 0"),
        (Settings { packing: Packing { context: 1000, ..settings().packing }, ..settings() }, "gives no row"),
    ] {
        let directory = tempdir().unwrap();
        let error = harvest_to(directory.path(), &settings, &corpus).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(ActivationReader::open(directory.path()).is_err());
    }
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("thesis.tex"), "").unwrap();
    let error = harvest_to(directory.path(), &settings(), &corpus).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
}

/// A network whose stream is not finite for one token.
struct Bad(endoscope_models::Model);

impl Network for Bad {
    fn sites(&self) -> &endoscope_net::Sites {
        self.0.sites()
    }

    fn run(&self, inputs: &Inputs, plan: &Plan) -> endoscope_net::Result<endoscope_net::Run> {
        let Inputs::Tokens(rows) = inputs else { panic!("tokens") };
        let mut plan = plan.clone();
        for (row, ids) in rows.ids().iter().enumerate() {
            for (position, _) in ids.iter().enumerate().filter(|(_, id)| **id == 29) {
                let change = endoscope_net::Change::Scale { factor: 1e30 };
                for _ in 0..2 {
                    let edit = endoscope_net::Edit::new(STREAM, change.clone());
                    let edit = edit.at(endoscope_net::AxisName::Batch, Index::At(row as i64));
                    plan = plan.edit(edit.at(endoscope_net::AxisName::Position, Index::At(position as i64)));
                }
            }
        }
        self.0.decoder.run(inputs, &plan)
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_with_their_place() {
    let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens");
    let bad = Bad(endoscope_models::Model::open(goldens.join("gpt2-odd")).unwrap());
    let corpus = [vec![1, 2, 3, 4, 5], vec![7, 8, 9, 10, 11], vec![1, 29, 3, 29, 2], vec![3; 5]];
    let packing = Packing { begin: None, separator: None, context: 5, mode: SequenceMode::Blocks };
    let settings = Settings { packing, shard_rows: Some(5), ..settings() };
    let documents =
        |from: u64| -> Result<Documents<'_>> { Ok(Box::new(corpus.iter().skip(from as usize).cloned().map(Ok))) };
    let directory = tempdir().unwrap();
    let error = harvest(&bad, &settings, &documents, directory.path(), &mut |_| Ok(())).unwrap_err();
    match &error {
        Error::NotFinite { output, count, dim: 0, position: 1, sequence: 2, document: 2, token: 29, .. } => {
            assert_eq!((output.as_str(), *count), (STREAM, 2 * 20), "two positions of 20 numbers");
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("--allow-non-finite"), "{error}");
    // The shards before it are there, and the harvest goes on from them.
    assert_eq!(Manifest::read(directory.path()).unwrap().unwrap().shards.len(), 2);
    let allowed = Settings { non_finite: NonFinite::Allow, ..settings.clone() };
    let harvested = harvest(&bad, &allowed, &documents, directory.path(), &mut |_| Ok(())).unwrap();
    assert_eq!(harvested.found, 2);
    let reader = ActivationReader::open(directory.path()).unwrap();
    let row = reader.read(STREAM, 11..12).unwrap().to_vec2::<f32>().unwrap();
    assert!(row[0].iter().all(|number| !number.is_finite()));
    // What f16 cannot hold is not finite either.
    let large = Settings { dtype: Dtype::F16, ..settings };
    let error = harvest(&bad, &large, &documents, tempdir().unwrap().path(), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("65504"), "{error}");
}

#[test]
fn two_processes_do_not_write_to_one_folder() {
    let corpus = documents(20, 8);
    let directory = tempdir().unwrap();
    let mut asked = false;
    harvest_watched(directory.path(), &settings(), &corpus, &mut |_| {
        if !std::mem::replace(&mut asked, true) {
            let error = harvest_to(directory.path(), &settings(), &corpus).unwrap_err();
            assert!(matches!(error, Error::InUse { .. }), "{error}");
        }
        Ok(())
    })
    .unwrap();
    assert!(asked);
}
