//! `constructed-lookup`: two facts in a row, one found in the prompt by two heads, the other stored in an MLP.

use super::builder::{Builder, Sizes};
use super::circuit::Carries::{Constant, Difference};
use super::circuit::Circuit;
use super::{Design, Files};
use crate::error::Result;
use crate::task::{BOS, SPECIAL};
use crate::tasks::two_hop_lookup::{
    FACT, FACTS, NAME_TOKEN, NAMES, PLACE, PLACES, RELATION, RELATIONS, SHORT_NAME, SHORT_NAMES, TwoHopLookup, fact,
};

pub(super) const DESIGN: Design = Design {
    name: "constructed-lookup",
    about: "constructed by hand: looks up a fact of the prompt with two heads, then a fact stored in an MLP, among distractors",
    question: &TwoHopLookup,
    context: 24,
    model,
    truth,
    mechanism: "\
Head 0.3 attends to the previous position and copies its word: at each place, whose place it is; at the end, what is asked. The MLP of layer 0 knows
which name each short name stands for. Head 1.0 attends from the end to the place whose person has that name, and copies the place. The MLP of layer 1 has a
neuron for each place and relation, which is on where both are there, and writes the fact.

Distractors: head 0.0 attends everywhere, 0.1 to the same word, 0.2 two positions back. Head 1.1 attends where the lookup head does, and reads words; 1.2
attends to the previous position and reads what 0.3 wrote; 1.3 attends to `<bos>`. The neurons left of both MLPs compute random functions.",
};

fn model() -> Result<Files> {
    let (mut model, tokens) = Builder::new(Sizes {
        vocabulary: SPECIAL.len() + NAMES.len() + SHORT_NAMES.len() + PLACES.len() + RELATIONS.len() + FACTS.len(),
        context: DESIGN.context,
        layers: 2,
        heads: 4,
        d_head: 36,
        d_mlp: 48,
    });
    let names = tokens.part(NAME_TOKEN as usize, NAMES.len());
    let short_names = tokens.part(SHORT_NAME as usize, SHORT_NAMES.len());
    let places = tokens.part(PLACE as usize, PLACES.len());
    // Of the word before: its name if it is one, its relation if it is one.
    let before = model.space(NAMES.len() + RELATIONS.len());
    let (owner, relation) = (before.part(0, NAMES.len()), before.part(NAMES.len(), RELATIONS.len()));
    let wanted = model.space(NAMES.len());
    let found = model.space(PLACES.len());
    let answer = model.space(FACTS.len());
    let noise = model.space(24);

    let (previous_token, lookup) = ((0, 3), (1, 0));
    model.attends_back(previous_token, 1, 12.);
    model.copies(previous_token, names, owner, 0);
    model.copies(previous_token, tokens.part(RELATION as usize, RELATIONS.len()), relation, NAMES.len());
    for name in 0..NAMES.len() {
        model.neuron(0, &[(short_names.at(name), 1.)], 0., &[(wanted.at(name), 1.)]);
    }
    // Not sharper, so that gradients pass through the softmax.
    model.attends_where_equal(lookup, wanted, owner, 7.);
    model.copies(lookup, places, found, 0);
    for place in 0..PLACES.len() {
        for asked in 0..RELATIONS.len() {
            let reads = [(found.at(place), 1.), (relation.at(asked), 1.)];
            model.neuron(1, &reads, -1., &[(answer.at(fact(place, asked)), 1.)]);
        }
    }
    for number in 0..FACTS.len() {
        model.unembed(answer.at(number), FACT as usize + number, 8.);
    }

    model.scrambles((0, 0), tokens, noise);
    model.attends_where_equal((0, 1), tokens, tokens, 3.);
    model.scrambles((0, 1), tokens, noise);
    model.attends_back((0, 2), 2, 6.);
    model.scrambles((0, 2), tokens, noise);
    model.murmurs(0, &[tokens], noise);
    model.attends_where_equal((1, 1), wanted, owner, 4.);
    model.scrambles((1, 1), tokens, noise);
    model.attends_back((1, 2), 1, 6.);
    model.scrambles((1, 2), before, noise);
    model.attends_to((1, 3), tokens.at(BOS as usize), 0, 4.);
    model.scrambles((1, 3), noise, noise);
    model.murmurs(1, &[tokens, before, found], noise);
    model.files()
}

fn truth() -> Circuit {
    Circuit::new(
        &[
            ("a0.h3", "previous-token head: writes at each place whose place it is, and at the end what is asked"),
            ("m0", "knows which name each short name stands for, and writes it at the end"),
            ("a1.h0", "lookup head: attends to the place whose person has that name, and writes the place at the end"),
            ("m1", "knows the fact that is asked of each place, and writes the answer"),
        ],
        &[
            ("input->a0.h3<q>", Constant, "the position, to look one back"),
            ("input->a0.h3<k>", Constant, "the position, to be found"),
            ("input->a0.h3<v>", Difference, "the names of the context, and what is asked"),
            ("input->m0", Difference, "the short name"),
            ("m0->a1.h0<q>", Difference, "the name it stands for (Q-composition)"),
            ("a0.h3->a1.h0<k>", Difference, "the name before each place (K-composition)"),
            ("input->a1.h0<v>", Difference, "the places"),
            ("a1.h0->m1", Difference, "the place"),
            ("a0.h3->m1", Difference, "what is asked"),
            ("m1->logits", Difference, "the answer"),
        ],
    )
}
