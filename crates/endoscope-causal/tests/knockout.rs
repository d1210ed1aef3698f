//! Attention knockout: planned against naive and against edits by hand, and what it finds in the organism.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::Path;

use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_net::{AxisName, Change, Edit, Index, Inputs, Network, Plan};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn tiny(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)).unwrap()
}

fn run(model: &Model, asked: &Knockout, cuts: &[Cut], planner: Planner) -> Result<KnockoutScores> {
    knockout(&model.decoder, asked, cuts, planner, |_| ControlFlow::Continue(()))
}

fn asked(window: usize, heads: KnockoutHeads, metric: Metric) -> Knockout {
    Knockout { window, heads, metric, seed: 3 }
}

fn cut(clean: &[u32], from: &[usize], to: &[usize]) -> Cut {
    let pair = Pair { clean: clean.to_vec(), corrupt: clean.to_vec(), answers: vec![3], wrong_answers: vec![4] };
    let list = |places: &[usize]| Index::List(places.iter().map(|&at| at as i64).collect());
    Cut { pair, from: list(from), to: list(to) }
}

const MODELS: [&str; 6] =
    ["gpt2-odd", "llama-grouped", "gemma2-odd", "mistral-sliding", "gpt_neox-parallel", "falcon-alibi"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn planned_equals_naive(
        name in select(MODELS.to_vec()),
        tokens in proptest::collection::vec(0u32..37, 3..9),
        from in subsequence((0..9usize).collect::<Vec<_>>(), 1..4),
        to in subsequence((0..9usize).collect::<Vec<_>>(), 1..4),
        window in 1usize..4,
        each in any::<bool>(),
        metric in select(Metric::ALL.to_vec()),
        memory in select(vec![1u64, 1 << 30]),
    ) {
        let model = tiny(name);
        let heads = if each { KnockoutHeads::Each } else { KnockoutHeads::All };
        let asked = asked(if each { 1 } else { window }, heads, metric);
        let inside = |places: Vec<usize>| places.into_iter().map(|at| at % tokens.len()).collect::<Vec<_>>();
        let cuts = [cut(&tokens, &inside(from), &inside(to))];
        let planned = run(&model, &asked, &cuts, Planner::within(memory));
        let naive = run(&model, &asked, &cuts, Planner::Naive);
        let (planned, naive) = match (planned, naive) {
            (Ok(planned), Ok(naive)) => (planned, naive),
            (Err(planned), Err(naive)) => {
                prop_assert_eq!(planned.to_string(), naive.to_string());
                prop_assume!(false);
                return Ok(());
            }
            (planned, naive) => panic!("{planned:?} {naive:?}"),
        };
        let (planned, naive) = (&planned.prompts[0], &naive.prompts[0]);
        prop_assert_eq!(&planned.control_from, &naive.control_from);
        let all = |prompt: &KnockoutPrompt| [prompt.cut.clone(), prompt.control.clone().unwrap_or_default()].concat();
        let (planned, naive) = (all(planned), all(naive));
        prop_assert_eq!(planned.len(), naive.len());
        let counting = [Metric::Rank, Metric::Accuracy].contains(&metric);
        for (planned, naive) in planned.into_iter().zip(naive) {
            // Ranks of equal logits may turn on the last bit.
            prop_assert!((planned - naive).abs() < 1e-4 * naive.abs().max(1.) || (counting && (planned - naive).abs() <= 1.));
        }
    }
}

#[test]
fn a_cell_is_the_edits_of_its_window() {
    let model = tiny("gpt2-odd");
    let tokens = [1u32, 7, 3, 9, 5];
    let found = run(
        &model,
        &asked(2, KnockoutHeads::All, Metric::LogitDiff),
        &[cut(&tokens, &[1, 2], &[4])],
        Planner::default(),
    );
    let found = found.unwrap();
    assert_eq!((found.layers.as_slice(), found.heads), ([0, 1, 2].as_slice(), None));
    for (centre, window) in [(0, vec![0, 1]), (1, vec![1, 2]), (2, vec![2])] {
        let plan = window.into_iter().fold(Plan::default(), |plan, layer| {
            plan.edit(
                Edit::new(format!("attn_scores.{layer}"), Change::KnockOut)
                    .at(AxisName::Query, Index::At(4))
                    .at(AxisName::Key, Index::Range { start: 1, end: Some(3) }),
            )
        });
        let run = model.decoder.run(&Inputs::tokens(vec![tokens.to_vec()]).unwrap(), &plan).unwrap();
        let logits = run.outputs.get(0).unwrap().get(4).unwrap().to_vec1::<f32>().unwrap();
        let expected = f64::from(logits[3] - logits[4]);
        assert!((found.prompts[0].cut[centre] - expected).abs() < 1e-4);
    }
    assert!(found.cost.work.rows() < found.cost.naive.rows());
}

#[test]
fn the_organism_needs_the_edges_that_carry_the_word() {
    let model = Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction")).unwrap();
    // <bos> a b c d e f a b: the word after the first b, at position 3, is looked up by the last position.
    let cuts: Vec<Cut> = (0..6u32)
        .map(|at| {
            let words: Vec<u32> = (0..6).map(|word| 2 + at * 7 + word).collect();
            let clean = [&[0][..], &words, &words[..2]].concat();
            let pair = Pair { corrupt: clean.clone(), clean, answers: vec![words[2]], wrong_answers: vec![words[5]] };
            Cut { pair, from: Index::At(3), to: Index::At(-1) }
        })
        .collect();
    let found = run(&model, &asked(1, KnockoutHeads::All, Metric::Probability), &cuts, Planner::default()).unwrap();
    for prompt in &found.prompts {
        assert!(prompt.whole > 0.8, "{prompt:?}");
        // In layer 1, not in layer 0; and no other word.
        assert!(prompt.cut[1] < 0.3 && prompt.cut[0] > 0.8, "{prompt:?}");
        assert!(prompt.control_from != [3] && prompt.control.as_ref().unwrap()[1] > 0.5, "{prompt:?}");
    }
}

#[test]
fn what_cannot_be_cut_is_an_error() {
    let model = tiny("llama-grouped");
    let check = |asked: Knockout, cuts: &[Cut], part: &str| {
        let error = run(&model, &asked, cuts, Planner::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let all = |window| asked(window, KnockoutHeads::All, Metric::Kl);
    let tokens = [1u32, 7, 3];
    check(all(1), &[], "no prompts");
    check(all(0), &[cut(&tokens, &[0], &[2])], "at least one layer");
    check(asked(2, KnockoutHeads::Each, Metric::Kl), &[cut(&tokens, &[0], &[2])], "the window is 1, not 2");
    check(all(1), &[cut(&tokens, &[0], &[2]), cut(&tokens, &[], &[2])], "prompt pair 1: `from` holds no position");
    check(all(1), &[cut(&tokens, &[0], &[3])], "position 3 is outside of a prompt of 3 tokens");
    check(all(1), &[cut(&tokens, &[0], &[0, 2])], "position 0 sees nothing but what is cut");
    check(all(1), &[cut(&tokens, &[0, 1, 2], &[2])], "position 2 sees nothing");
    let stop =
        knockout(&model.decoder, &all(1), &[cut(&tokens, &[0], &[2])], Planner::default(), |_| ControlFlow::Break(()));
    assert!(matches!(stop.unwrap_err(), Error::Interrupted));
}
