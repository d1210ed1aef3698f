use super::*;
use crate::lab::Level;
use endoscope_report::Verdict;

fn score(mse: f64) -> Score {
    Score { mse, fvu: mse / 10., l0: 4. }
}

fn scores(words: f64, template: f64, plain: f64, unstructured: f64) -> Scores {
    let all = score((words + template) / 2.);
    Scores {
        later: all.clone(),
        all,
        template: score(template),
        words: score(words),
        halves: [words, words],
        plain: score(plain),
        unstructured: score(unstructured),
        unstructured_later: score(unstructured),
        recovered: 0.9,
    }
}

fn verdicts(arms: [Scores; 6]) -> Vec<Verdict> {
    let figures = Figures { accuracy: 1., lengths: [1., 1.], arms: arms.to_vec() };
    findings(&vec![figures; 3]).unwrap().iter().map(Finding::verdict).collect()
}

#[test]
fn claims_fall_where_the_effect_is_taken_away() {
    let (fast, blocks, plain) = (scores(1., 1., 2., 1.), scores(1.5, 3., 2., 1.), scores(6., 6., 1., 1.));
    let shown = [&fast, &blocks, &plain, &scores(1.5, 3.5, 2., 1.), &fast, &fast].map(Scores::clone);
    assert_eq!(verdicts(shown.clone()), [Verdict::Shown; 5]);
    // All dictionaries alike.
    let none = Verdict::NotShown;
    assert_eq!(verdicts([(); 6].map(|()| fast.clone())), [none; 5]);
    // Documents without structure gain as much: it is not the chat.
    let mut loose = shown.clone();
    loose[UNSTRUCTURED_BLOCKS] = scores(1., 1., 2., 3.);
    assert_eq!(verdicts(loose), [none, none, Verdict::Shown, Verdict::Shown, Verdict::Shown]);
    // Permuted markers gain as much: it is not the template.
    let mut markers = shown.clone();
    markers[PERMUTED] = fast.clone();
    assert_eq!(verdicts(markers), [Verdict::Shown, Verdict::Shown, Verdict::Shown, none, Verdict::Shown]);
    // Words gain as much as the template.
    let mut even = shown;
    even[BLOCKS] = scores(3., 3., 2., 1.);
    assert_eq!(verdicts(even), [Verdict::Shown, Verdict::Shown, Verdict::Shown, Verdict::Shown, none]);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let lab = || Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
    let organism = lab().organism("induction").unwrap();
    let given = FastSae.run(&lab().with_model(&organism), &FastSae::smoke()).unwrap_err().to_string();
    assert!(given.contains("in order"), "{given}");
    let few = Config { chats: 16, batch: 17, ..FastSae::smoke() };
    let error = FastSae.run(&lab(), &few).unwrap_err().to_string();
    assert!(error.contains("17 of 16 chats"), "{error}");
    let crowded = Config { latents: 8, active: 9, ..FastSae::smoke() };
    assert!(FastSae.run(&lab(), &crowded).is_err());
}
