//! The circuits of the constructed organisms are what they say: every edge, every node, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;

use candle_core::{D, Device};
use common::{Batch, Lab, Node, edge, quiet_norm};
use endoscope_net::{Capture, Inputs, Network, Plan};
use endoscope_organisms::{Carries, Circuit, constructed, organisms};
use endoscope_train::generator;

/// Of the difference of logits, in logits: what an edge outside the circuit may change, through LayerNorm's divisor or the
/// rest of a softmax.
const NOTHING: f32 = 0.002;
/// What an edge of the circuit changes on average, at least.
const SOMETHING: f32 = 2.;
/// From transformers' logits, which are up to 8: as for the sites of other models.
const LOGIT_TOLERANCE: f32 = 3e-5;

fn names() -> Vec<&'static str> {
    organisms().into_iter().map(|organism| organism.name).filter(|name| name.starts_with("constructed-")).collect()
}

fn labs() -> impl Iterator<Item = Lab> {
    assert!(!names().is_empty());
    names().into_iter().map(Lab::new)
}

/// Mean and greatest change of the difference of logits.
fn changes(lab: &Lab, batches: &[Batch], plan: impl Fn(&Batch) -> Plan) -> (f32, f32) {
    let mut all = Vec::new();
    for batch in batches {
        let after = lab.differences(batch, plan(batch));
        all.extend(batch.lead.iter().zip(after).map(|(before, after)| (before - after).abs()));
    }
    (all.iter().sum::<f32>() / all.len() as f32, all.iter().copied().fold(0., f32::max))
}

#[test]
fn every_answer_is_right() {
    for lab in labs() {
        let question = lab.organism.question;
        let (fewest, most) = question.items();
        let (mut least, mut all) = (f32::INFINITY, 0);
        for items in fewest..=most {
            let mut random = generator(7, items as u64);
            let rows: Vec<Vec<u32>> = (0..100).map(|_| question.prompt(&mut random, items)).collect();
            let run = lab.model.decoder.run(&Inputs::tokens(rows.clone()).unwrap(), &Plan::default()).unwrap();
            let logits = run.outputs.to_vec3::<f32>().unwrap();
            for (row, logits) in rows.iter().zip(&logits) {
                let answer = question.answer(row).unwrap() as usize;
                let logits = &logits[row.len() - 1];
                let other = (0..logits.len()).filter(|&id| id != answer).map(|id| logits[id]).fold(f32::MIN, f32::max);
                least = least.min(logits[answer] - other);
                all += 1;
            }
        }
        println!("{}: {all} prompts, the right answer leads by at least {least:.3} logits", lab.organism.name);
        assert!(least > 3., "{}: {least}", lab.organism.name);
    }
}

#[test]
fn an_edge_matters_if_and_only_if_it_is_in_the_circuit() {
    for lab in labs() {
        let batches = lab.batches(3, 32);
        let Circuit { edges, .. } = &lab.organism.truth;
        let known: BTreeSet<String> = lab.edges().into_iter().map(|(from, to)| edge(from, to)).collect();
        for truth in edges {
            assert!(known.contains(&truth.name), "{} is no edge of {}", truth.name, lab.organism.name);
        }
        let (mut weakest, mut loudest, mut count) = (f32::INFINITY, (0f32, String::new()), 0);
        for (from, to) in lab.edges() {
            let name = edge(from, to);
            let carries = edges.iter().find(|edge| edge.name == name).map(|edge| edge.carries);
            // From the other prompt, then zeroed.
            let (exchanged, zeroed) = (
                changes(&lab, &batches, |batch| {
                    let change = (lab.written(&batch.corrupt, from) - lab.written(&batch.clean, from)).unwrap();
                    Plan::default().edit(lab.reads(batch, to, &change))
                }),
                changes(&lab, &batches, |batch| {
                    let change = lab.written(&batch.clean, from).neg().unwrap();
                    Plan::default().edit(lab.reads(batch, to, &change))
                }),
            );
            let text =
                format!("{} {name} {carries:?}: exchanged {exchanged:.4?}, zeroed {zeroed:.4?}", lab.organism.name);
            if carries.is_some() {
                println!("{text}");
            }
            for (what, (mean, greatest), counts) in
                [("exchanged", exchanged, carries == Some(Carries::Difference)), ("zeroed", zeroed, carries.is_some())]
            {
                match counts {
                    true => assert!(mean > SOMETHING, "{what}: {text}"),
                    false => assert!(greatest < NOTHING, "{what}: {text}"),
                }
                match counts {
                    true => weakest = weakest.min(mean),
                    false if greatest > loudest.0 => loudest = (greatest, format!("{name} {what}")),
                    false => {}
                }
            }
            count += 1;
        }
        println!(
            "{}: {count} edges, weakest of the circuit {weakest:.3}, loudest other {loudest:.5?}",
            lab.organism.name
        );
    }
}

#[test]
fn the_circuit_alone_is_enough_and_each_of_its_nodes_is_needed() {
    for lab in labs() {
        let batches = lab.batches(4, 64);
        let Circuit { nodes, edges } = &lab.organism.truth;
        let inside = |node: Node| node == Node::Input || nodes.iter().any(|known| known.name == node.name());
        let (circuit, outside): (Vec<Node>, Vec<Node>) = lab.nodes().into_iter().partition(|&node| inside(node));
        assert_eq!(circuit.len(), nodes.len() + 1, "each node of the circuit is a node of the model");
        assert!(outside.len() >= 6);
        assert_eq!(lab.accuracy(&batches, |_| Plan::default()), 1.);
        // Every other node as in the corrupt run, and every other edge of those of the circuit too.
        let alone = |batch: &Batch| {
            let plan =
                Plan { edits: outside.iter().map(|&node| lab.exchanged(batch, node)).collect(), ..Plan::default() };
            let others = lab.edges().into_iter().filter(|&(from, to)| {
                inside(from) && to.of().is_none_or(inside) && edges.iter().all(|known| known.name != edge(from, to))
            });
            others.fold(plan, |plan, (from, to)| {
                let change = (lab.written(&batch.corrupt, from) - lab.written(&batch.clean, from)).unwrap();
                plan.edit(lab.reads(batch, to, &change))
            })
        };
        let (mean, greatest) = changes(&lab, &batches, alone);
        println!(
            "{}: the circuit alone changes the difference of logits by {mean:.5}, at most {greatest:.5}",
            lab.organism.name
        );
        assert!(greatest < NOTHING, "{greatest}");
        assert_eq!(lab.accuracy(&batches, alone), 1.);
        for &node in circuit.iter().filter(|&&node| node != Node::Input) {
            let left = lab.accuracy(&batches, |batch| Plan::default().edit(lab.exchanged(batch, node)));
            println!("{}: accuracy {left:.3} with {} of the other prompt", lab.organism.name, node.name());
            assert!(left < 0.5, "{}: {left}", node.name());
        }
        for &node in &outside {
            let left = lab.accuracy(&batches, |batch| Plan::default().edit(lab.exchanged(batch, node)));
            assert_eq!(left, 1., "{}", node.name());
            // It is a distractor that says something, and not the same in both prompts.
            let said = |batch: &Batch| {
                let change = (lab.written(&batch.corrupt, node) - lab.written(&batch.clean, node)).unwrap();
                change.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
            };
            assert!(batches.iter().all(|batch| said(batch) > 1e-4), "{} says nothing", node.name());
        }
    }
}

#[test]
fn transformers_computes_the_same_logits() {
    for lab in labs() {
        let name = lab.organism.name;
        let golden =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{name}.safetensors"));
        let golden = candle_core::safetensors::load(golden, &Device::Cpu).unwrap();
        let tokens = golden["tokens"].to_vec2::<u32>().unwrap();
        let logits = lab.model.decoder.run(&Inputs::tokens(tokens).unwrap(), &Plan::default()).unwrap().outputs;
        let difference = (&logits - &golden["logits"]).unwrap().abs().unwrap().max_all().unwrap();
        let difference = difference.to_scalar::<f32>().unwrap();
        println!("{name}: {difference:e} from transformers");
        assert!(difference < LOGIT_TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn layer_norm_does_nothing() {
    for lab in labs() {
        let plan = Plan::default().capture(Capture::new("resid_pre.*")).capture(Capture::new("resid_post.*"));
        let batches = lab.batches(5, 32);
        for batch in &batches {
            let rows = batch.pairs.iter().map(|pair| pair.clean.clone()).collect();
            let run = lab.model.decoder.run(&Inputs::tokens(rows).unwrap(), &plan).unwrap();
            for (site, stream) in run.captured.iter() {
                let quiet = stream.narrow(D::Minus1, 2, 1).unwrap().abs().unwrap().max_all().unwrap();
                assert_eq!(quiet.to_scalar::<f32>().unwrap(), 0., "{site}: the quiet coordinate");
                let norm = quiet_norm(stream);
                assert!(norm < 80., "{site}: {norm}");
            }
        }
    }
}

#[test]
fn its_files_are_small_the_same_each_time_and_fit_each_other() {
    for name in names() {
        let (once, again) = (constructed(name).unwrap(), constructed(name).unwrap());
        assert_eq!(once.files, again.files);
        let size: usize = once.files.iter().map(|(_, contents)| contents.len()).sum();
        println!("{name}: {size} bytes");
        assert!(size < 4 << 20, "{name}: {size}");
        let file = |name: &str| &once.files.iter().find(|(file, _)| file == name).unwrap().1;
        let truth: Circuit = serde_json::from_slice(file("circuit.json")).unwrap();
        assert_eq!(truth, once.truth);
        let lab = Lab::new(name);
        let tokenizer = lab.model.tokenizer().unwrap();
        let encode =
            |text: &serde_json::Value| tokenizer.encode(text.as_str().unwrap(), Default::default()).unwrap().ids;
        let written: serde_json::Value = serde_json::from_slice(file("pairs.json")).unwrap();
        for (pair, text) in once.pairs(1, 64).iter().zip(written["prompts"].as_array().unwrap()) {
            assert_eq!((encode(&text["clean"]), encode(&text["corrupt"])), (pair.clean.clone(), pair.corrupt.clone()));
            assert_eq!(lab.model.label(pair.answers[0]), text["answers"][0].as_str().unwrap());
        }
        // With the answer.
        assert!(once.question.length(once.question.items().1) < lab.model.spec().context);
    }
    assert!(
        constructed("constructed-inductoin").is_err_and(|error| error.to_string().contains("constructed-induction"))
    );
}
