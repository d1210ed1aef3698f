//! `constructed-counting`: a head whose attention to the first token falls with a count, and an MLP that reads the count off.

use super::builder::{Builder, Part, Sizes};
use super::circuit::Carries::{Constant, Difference};
use super::circuit::Circuit;
use super::{Design, Files};
use crate::error::Result;
use crate::task::{BOS, SPECIAL};
use crate::tasks::count_modulo_three::{ANSWER, ANSWERS, COUNT, CountModuloThree, FRUIT, FRUITS, MOST};

pub(super) const DESIGN: Design = Design {
    name: "constructed-counting",
    about: "constructed by hand: counts how often a word occurs, modulo three, with two heads, an MLP, and distractors",
    question: &CountModuloThree,
    context: 20,
    model,
    truth,
    mechanism: "\
Head 0.1 attends to the previous position and copies its word, so that at `=` stands which word is to be counted. Head 1.3 attends from there evenly to
`<bos>` and to each occurrence of that word (the question's own included), and copies from `<bos>` a 1: what it writes is 1 / (2 + count). The MLP of
layer 1 is the piecewise linear function, with a knot at each possible share, that makes of it the count modulo three.

Distractors: head 0.0 attends to the same word, 0.2 everywhere, 0.3 two positions back. Head 1.0 attends to where the wanted word stands, as the counting
head does, but reads words; 1.1 attends to the previous position and reads what 0.1 wrote; 1.2 attends to `count`. The MLP of layer 0 and 43 of 48
neurons of layer 1 compute random functions.",
};

/// The counting head's score of the first token and of each occurrence; all others have 0 and so 1 / 3000 of their weight.
const GAIN: f32 = 8.;

fn model() -> Result<Files> {
    let (mut model, tokens) = Builder::new(Sizes {
        vocabulary: SPECIAL.len() + FRUITS.len() + 2 + ANSWERS.len(),
        context: DESIGN.context,
        layers: 2,
        heads: 4,
        d_head: 24,
        d_mlp: 48,
    });
    let fruits = tokens.part(FRUIT as usize, FRUITS.len());
    let wanted = model.space(FRUITS.len());
    let share = model.space(1);
    let answer = model.space(ANSWERS.len());
    let noise = model.space(24);

    let (previous_token, counting) = ((0, 1), (1, 3));
    model.attends_back(previous_token, 1, 12.);
    model.copies(previous_token, fruits, wanted, 0);
    // To the first token as much as to each occurrence.
    let first = tokens.at(BOS as usize);
    model.attends_where_equal(counting, wanted, fruits, GAIN);
    model.attends_to(counting, first, FRUITS.len(), GAIN);
    model.read(counting, Part::Value, first, 0, 1.);
    model.write(counting, 0, share.at(0), 1.);
    // Ascending, as the shares of 4, 3, 2, 1 and 0 are.
    let shares: Vec<f32> = (0..=MOST).rev().map(|times| 1. / (2. + times as f32)).collect();
    let is = |number: usize| move |times: usize| if times % ANSWERS.len() == number { 1f32 } else { 0. };
    let values: Vec<Vec<f32>> = (0..ANSWERS.len()).map(|number| (0..=MOST).rev().map(is(number)).collect()).collect();
    let bends: Vec<Vec<f32>> = values.iter().map(|values| bends(&shares, values)).collect();
    for (knot, &position) in shares.iter().enumerate() {
        let writes: Vec<_> = bends.iter().enumerate().map(|(number, bends)| (answer.at(number), bends[knot])).collect();
        model.neuron(1, &[(share.at(0), 1.)], -position, &writes);
    }
    for (number, values) in values.iter().enumerate() {
        model.mlp_bias(1, answer.at(number), values[0]);
        model.unembed(answer.at(number), ANSWER as usize + number, 4.);
    }

    model.attends_where_equal((0, 0), fruits, fruits, 3.);
    model.scrambles((0, 0), fruits, noise);
    model.scrambles((0, 2), fruits, noise);
    model.attends_back((0, 3), 2, 6.);
    model.scrambles((0, 3), tokens, noise);
    model.murmurs(0, &[fruits], noise);
    model.attends_where_equal((1, 0), wanted, fruits, 4.);
    model.scrambles((1, 0), fruits, noise);
    model.attends_back((1, 1), 1, 6.);
    model.scrambles((1, 1), wanted, noise);
    model.attends_to((1, 2), tokens.at(COUNT as usize), 0, 4.);
    model.scrambles((1, 2), noise, noise);
    model.murmurs(1, &[fruits, wanted, share], noise);
    model.files()
}

/// How much the slope changes at each knot of the function which joins these points by straight lines and is constant
/// beyond them.
fn bends(knots: &[f32], values: &[f32]) -> Vec<f32> {
    let slopes: Vec<f32> = knots
        .windows(2)
        .zip(values.windows(2))
        .map(|(knots, values)| (values[1] - values[0]) / (knots[1] - knots[0]))
        .collect();
    let slope = |at: Option<usize>| at.and_then(|at| slopes.get(at)).copied().unwrap_or(0.);
    (0..knots.len()).map(|at| slope(Some(at)) - slope(at.checked_sub(1))).collect()
}

fn truth() -> Circuit {
    Circuit::new(
        &[
            ("a0.h1", "previous-token head: writes at `=` which word is to be counted"),
            (
                "a1.h3",
                "counting head: attends evenly to `<bos>` and to each occurrence of that word, and writes the share of `<bos>`",
            ),
            ("m1", "turns the share into the count modulo three, and writes the answer"),
        ],
        &[
            ("input->a0.h1<q>", Constant, "the position, to look one back"),
            ("input->a0.h1<k>", Constant, "the position, to be found"),
            ("input->a0.h1<v>", Difference, "the word that is to be counted"),
            ("a0.h1->a1.h3<q>", Difference, "the word that is to be counted (Q-composition)"),
            ("input->a1.h3<k>", Difference, "the words, of which some are that word"),
            ("input->a1.h3<v>", Constant, "that the first token is `<bos>`"),
            ("a1.h3->m1", Difference, "the share of `<bos>`, 1 / (2 + count)"),
            ("m1->logits", Difference, "the answer"),
        ],
    )
}
