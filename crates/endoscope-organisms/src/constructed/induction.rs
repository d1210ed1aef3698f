//! `constructed-induction`: a previous-token head and an induction head (Elhage et al. 2021; Olsson et al. 2022, arXiv
//! 2209.11895), and nothing else that counts.

use super::builder::{Builder, Part, Sizes};
use super::circuit::Carries::{Constant, Difference};
use super::circuit::Circuit;
use super::{Design, Files};
use crate::error::Result;
use crate::task::{BOS, SPECIAL};
use crate::tasks::what_followed::{WORDS, WhatFollowed};

pub(super) const DESIGN: Design = Design {
    name: "constructed-induction",
    about: "constructed by hand: a previous-token head in layer 0, an induction head in layer 1, and distractors",
    question: &WhatFollowed,
    context: 24,
    model,
    truth,
    mechanism: "\
Head 0.2 attends to the previous position and copies its word into a space of its own, “the word before”. Head 1.1 attends from a word to
where the same word is “the word before”, and copies the word that stands there into the space that the unembedding reads.

Distractors: head 0.0 attends to the same word, 0.1 two positions back, 0.3 everywhere. Head 1.0 attends to the previous position and reads
what 0.2 wrote; head 1.2 attends as the induction head does, and reads words; head 1.3 attends to `<bos>`. Both MLPs compute random functions:
of the word (layer 0), of everything that the circuit writes, the answer included (layer 1).",
};

fn model() -> Result<Files> {
    let (mut model, tokens) = Builder::new(Sizes {
        vocabulary: SPECIAL.len() + WORDS,
        context: DESIGN.context,
        layers: 2,
        heads: 4,
        d_head: 40,
        d_mlp: 64,
    });
    let words = tokens.part(SPECIAL.len(), WORDS);
    let before = model.space(WORDS);
    let answer = model.space(WORDS);
    let noise = model.space(24);

    let (previous_token, induction) = ((0, 2), (1, 1));
    model.attends_back(previous_token, 1, 12.);
    model.copies(previous_token, words, before, 0);
    // Not sharper, so that gradients pass through the softmax.
    model.attends_where_equal(induction, words, before, 7.);
    model.copies(induction, words, answer, 0);
    for word in 0..WORDS {
        model.unembed(answer.at(word), SPECIAL.len() + word, 8.);
    }

    model.attends_where_equal((0, 0), words, words, 3.);
    model.scrambles((0, 0), words, noise);
    model.attends_back((0, 1), 2, 6.);
    model.scrambles((0, 1), words, noise);
    model.scrambles((0, 3), words, noise);
    model.murmurs(0, &[words], noise);
    model.attends_back((1, 0), 1, 6.);
    model.scrambles((1, 0), before, noise);
    model.attends_where_equal((1, 2), words, before, 4.);
    model.scrambles((1, 2), words, noise);
    model.attends_to((1, 3), tokens.at(BOS as usize), 0, 4.);
    model.bias((1, 3), Part::Value, 0, 0.5);
    model.scrambles((1, 3), noise, noise);
    model.murmurs(1, &[words, before, answer], noise);
    model.files()
}

fn truth() -> Circuit {
    Circuit::new(
        &[
            ("a0.h2", "previous-token head: writes at each position which word came before it"),
            (
                "a1.h1",
                "induction head: attends to the position before which the present word stood, and writes its word as the answer",
            ),
        ],
        &[
            ("input->a0.h2<q>", Constant, "the position, to look one back"),
            ("input->a0.h2<k>", Constant, "the position, to be found"),
            ("input->a0.h2<v>", Difference, "the word that is copied to the next position"),
            ("input->a1.h1<q>", Difference, "the present word, to be looked for"),
            ("a0.h2->a1.h1<k>", Difference, "the word before, in which it is looked for (K-composition)"),
            ("input->a1.h1<v>", Difference, "the word that is the answer"),
            ("a1.h1->logits", Difference, "the answer"),
        ],
    )
}
