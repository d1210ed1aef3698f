//! What is known of the organisms `sentences`, `boxes` and `boxes-tuned`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;

use candle_core::{D, Tensor};
use common::heads::accuracy;
use endoscope_models::{Bos, Model};
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Network, Plan, Value};
use endoscope_organisms::tasks::entity_tracking::EntityTracking;
use endoscope_organisms::tasks::questions::EVERYTHING;
use endoscope_organisms::{BOS, Streamed, TRAIN, Task, task_parts};
use endoscope_train::Recipe;

const FRESH: u64 = 20_250_101;
const ROWS: u64 = 512;
/// What an accuracy on 512 rows may differ by from one on others: three standard deviations of a share of one half.
const CHANCE: f64 = 0.066;

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms").join(name)
}

fn parts(name: &str) -> Vec<(String, Box<dyn Task>)> {
    let recipe = Recipe::read(directory(name).join("recipe.toml")).unwrap();
    assert_ne!(recipe.training.seed, FRESH);
    task_parts(&recipe.task.name, &recipe.task.parameters).unwrap()
}

/// The accuracy of the first answer of fresh rows: what stands before it holds no other answer.
fn of_part(model: &Model, task: &dyn Task) -> f64 {
    let first = |number| {
        let row = task.row(TRAIN, FRESH, number).unwrap();
        let answer = row.mask.iter().position(|&counts| counts).unwrap();
        row.tokens[..=answer].to_vec()
    };
    let mut rows: Vec<Vec<u32>> = (0..ROWS).map(first).collect();
    let longest = rows.iter().map(Vec::len).max().unwrap();
    // A shorter row is filled up; nothing is asked there.
    rows.iter_mut().for_each(|row| row.resize(longest, BOS));
    accuracy(&model.decoder, task, &rows, &Plan::default())
}

#[test]
fn the_accuracies_are_those_of_the_pages() {
    for (name, stated) in [
        (
            "sentences",
            &[
                ("indirect_object", 1.),
                ("entity_tracking 3", 0.90),
                ("laundry_list", 0.93),
                ("multiple_choice", 0.85),
                ("key_value_recall", 0.35),
            ][..],
        ),
        ("boxes", &[("entity_tracking 2", 0.72), ("entity_tracking 3", 0.63)]),
        ("boxes-tuned", &[("entity_tracking 2", 0.98), ("entity_tracking 3", 0.98)]),
    ] {
        let model = Model::open(directory(name)).unwrap();
        let parts = parts(name);
        for (part, stated) in stated {
            let task = parts.iter().find(|each| each.0 == *part).unwrap().1.as_ref();
            let found = of_part(&model, task);
            println!("{name}: {part} {found:.4}");
            assert!((found - stated).abs() < CHANCE, "{name}: {part} {found}, stated is {stated}");
        }
    }
}

/// Prompts about four boxes in pairs of which all but the labels differ, and the clean prompt's own answer with those
/// that it should have if the object, the label or the position were taken from the corrupt one.
struct Scenes {
    clean: Inputs,
    corrupt: Inputs,
    answers: [Vec<u32>; 4],
}

fn scenes(model: &Model) -> Scenes {
    let task = Streamed(EntityTracking::from_parameters(&toml::from_str("boxes = 4").unwrap()).unwrap());
    let words = task.words();
    let ids = |tokens: &[u32], bos: Bos| {
        let text: Vec<&str> = tokens.iter().map(|&token| words[token as usize].as_str()).collect();
        model.tokenizer().unwrap().encode(&text.join(" "), bos).unwrap().ids
    };
    let (mut clean, mut corrupt, mut answers) = (Vec::new(), Vec::new(), [const { Vec::new() }; 4]);
    for number in 0..ROWS / 4 {
        let pair = task.pair(TRAIN, EVERYTHING, FRESH, number).unwrap();
        let wanted = task.0.desiderata(&pair.clean, &pair.corrupt).unwrap();
        clean.push(ids(&pair.clean[1..], Bos::Prepend));
        corrupt.push(ids(&pair.corrupt[1..], Bos::Prepend));
        for (all, one) in
            answers.iter_mut().zip([pair.answers[0], wanted.object, wanted.label.unwrap(), wanted.position])
        {
            all.extend(ids(&[one], Bos::Omit));
        }
    }
    Scenes { clean: Inputs::tokens(clean).unwrap(), corrupt: Inputs::tokens(corrupt).unwrap(), answers }
}

impl Scenes {
    /// Which share of the clean prompts is answered in each of the four ways under a plan.
    fn shares(&self, model: &Model, plan: Plan) -> [f64; 4] {
        let outputs = model.decoder.run(&self.clean, &plan.outputs_at(Index::At(-1))).unwrap().outputs;
        let best = outputs.argmax(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let share = |answers: &Vec<u32>| {
            assert_eq!(answers.len(), best.len());
            best.iter().zip(answers).filter(|(best, answer)| best == answer).count() as f64 / best.len() as f64
        };
        self.answers.each_ref().map(share)
    }

    /// The same if all heads of a layer write at some positions what they write in the corrupt prompts.
    fn exchanged(&self, model: &Model, layer: usize, at: Index) -> [f64; 4] {
        let site = format!("z.{layer}");
        let plan = Plan::default().capture(Capture::new(site.clone()));
        let captured = model.decoder.run(&self.corrupt, &plan).unwrap().captured;
        let source: Tensor = captured.iter().next().unwrap().1.clone();
        let edit = Edit::new(site, Change::Patch { source: Value::from(source) }).at(AxisName::Position, at);
        self.shares(model, Plan::default().edit(edit))
    }
}

#[test]
fn the_place_of_the_box_is_found_at_the_label_and_the_object_fetched_at_the_end() {
    for name in ["sentences", "boxes-tuned"] {
        let model = Model::open(directory(name)).unwrap();
        let scenes = scenes(&model);
        let whole = scenes.shares(&model, Plan::default());
        let (end, label) = (Index::At(-1), Index::At(-3));
        // Own answer; that of the other prompt's object, label, position.
        let found = scenes.exchanged(&model, 0, label.clone());
        let told = scenes.exchanged(&model, 1, end.clone());
        let late = scenes.exchanged(&model, 1, label);
        println!("{name}: whole {whole:.3?}, 0 label {found:.3?}, 1 end {told:.3?}, 1 label {late:.3?}");
        assert!(whole[0] > 0.9);
        // What layer 0 writes at the label is needed, and it carries the position more than anything else.
        assert!(found[0] < 0.15 && found[3] > 0.3 && found[2] < 0.1, "{name}: {found:?}");
        // What layer 1 writes at the end is needed; what it writes at the label is not.
        assert!(told[0] < 0.15 && late[0] > whole[0] - 0.1, "{name}: {told:?} {late:?}");
    }
}
