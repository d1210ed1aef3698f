//! Every task of the registry: rows by their numbers, masks, the oracle, counterfactual pairs; and, for each, prompts with the
//! answers that a reader would give.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use endoscope_organisms::{BOS, Error, TASKS, Task, UNKNOWN, task, tokenizer_files};
use proptest::prelude::*;

/// Tasks with keys of `[task]`: small ones, and each that changes a format.
const MADE: &[(&str, &str)] = &[
    ("repeated_sequences", "words = 20\nshortest = 2\nlongest = 6"),
    ("what_followed", ""),
    ("count_modulo_three", ""),
    ("two_hop_lookup", ""),
    ("key_value_recall", ""),
    ("key_value_recall", "keys = 6\nvalues = 3\nshortest = 2\nlongest = 6\nasked = 3"),
    ("modular_addition", ""),
    ("modular_addition", "modulus = 5\ntrain_share = 0.5\nshuffled = true"),
    ("sorting_with_hints", ""),
    ("sorting_with_hints", "numbers = 9\nlongest = 4\nlonger = 8\nrepetitions = false\nhint = \"predecessor\""),
    ("sorting_with_hints", "numbers = 9\nlongest = 5\nlonger = 8\nhint = \"count\"\nhint_share = 0.9"),
    ("sorting_with_hints", "numbers = 5\nlongest = 4\nlonger = 8\nhint = \"random\""),
    ("sorting_with_hints", "numbers = 5\nlongest = 4\nlonger = 8\nhint = \"none\""),
    ("path_finding", ""),
    ("path_finding", "nodes = 20\nedge_probability = 0.2\nwalks = 2\ndata = \"edges\"\nseed = 1"),
    ("two_hop_facts", ""),
    ("two_hop_facts", "chain_of_thought = false"),
    ("entity_tracking", ""),
    ("entity_tracking", "boxes = 2"),
    ("entity_tracking", "form = \"assignments\""),
    ("entity_tracking", "boxes = 4\nasked = 3"),
    ("entity_tracking", "boxes = 3\nasked = 9\nform = \"questions\""),
    ("multiple_choice", ""),
    ("multiple_choice", "other_labels = 1.0"),
    ("indirect_object", ""),
    ("indirect_object", "names = 5"),
    ("laundry_list", ""),
    ("laundry_list", "shortest = 2\nlongest = 4\norder = \"listed\""),
    ("laundry_list", "shortest = 2\nlongest = 5\nasked = 3"),
    ("dialogues", ""),
    ("dialogues", "form = \"plain\""),
    ("dialogues", "keys = 3\nvalues = 2\nlongest = 3\nturns = 9"),
    ("opinions", ""),
    ("opinions", "ground = \"shallow\"\nnames = 3\ntopics = 7\nneutral = 4\nvalues = 2\nunknown = 0.5\nseed = 5"),
];

static ALL: LazyLock<Vec<Box<dyn Task>>> =
    LazyLock::new(|| MADE.iter().map(|(name, keys)| task(name, &toml::from_str(keys).unwrap()).unwrap()).collect());

fn check_row(task: &dyn Task, tokens: &[u32], mask: &[bool]) -> Result<(), TestCaseError> {
    prop_assert_eq!(tokens.len(), mask.len());
    prop_assert!(tokens.len() <= task.length(), "{} tokens, not at most {}", tokens.len(), task.length());
    prop_assert!(tokens[0] == BOS && !mask[0]);
    prop_assert!(tokens[1..].iter().all(|&id| id > UNKNOWN && (id as usize) < task.vocabulary()));
    prop_assert!(*mask.last().unwrap(), "the end of a row counts");
    let answers = task.answers(tokens);
    for at in 1..tokens.len() {
        let right = task.right(&tokens[..at]);
        prop_assert!(right.windows(2).all(|two| two[0] < two[1]), "sorted");
        // Source and target of a path count, though any may come.
        let any = task.name() == "path_finding" && at < 3;
        prop_assert!(!mask[at] || any || right.contains(&tokens[at]), "{at} of {tokens:?}: {right:?}");
        if let Some(answer) = answers[at] {
            prop_assert_eq!(&right, &[answer]);
        }
    }
    Ok(())
}

fn check(task: &dyn Task, seed: u64, number: u64) -> Result<(), TestCaseError> {
    for split in task.splits() {
        let row = task.row(split, seed, number).unwrap();
        prop_assert_eq!(&row, &task.row(split, seed, number).unwrap());
        check_row(task, &row.tokens, &row.mask)?;
        let others = (1..40).map(|more| task.row(split, seed, number + more).unwrap()).collect::<Vec<_>>();
        prop_assert!(others.iter().any(|other| *other != row), "{}: row after row is the same", task.name());
        for change in task.changes() {
            let pair = task.pair(split, change, seed, number).unwrap();
            prop_assert_eq!(&pair, &task.pair(split, change, seed, number).unwrap());
            prop_assert!(pair.clean.len() == pair.corrupt.len() && pair.clean.len() < task.length());
            prop_assert!(!pair.answers.is_empty() && !pair.wrong_answers.is_empty());
            let (right, wrong) = (task.right(&pair.clean), task.right(&pair.corrupt));
            prop_assert!(pair.answers.iter().all(|answer| right.contains(answer) && !wrong.contains(answer)));
            prop_assert!(pair.wrong_answers.iter().all(|answer| !right.contains(answer)));
            if *change == "three_names" {
                prop_assert!(wrong.is_empty());
            } else {
                prop_assert!(pair.wrong_answers.iter().all(|answer| wrong.contains(answer)));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn rows_and_pairs_are_what_they_say(seed: u64, number in 0u64..1_000_000) {
        for task in ALL.iter() {
            check(&**task, seed, number)?;
        }
    }

    #[test]
    fn batches_are_rows_filled_up(seed: u64, step in 0u64..1000) {
        for task in ALL.iter() {
            let batch = task.batch(seed, step, 5);
            prop_assert_eq!(&batch, &task.batch(seed, step, 5));
            let longest = batch.mask.iter().map(|mask| mask.iter().rposition(|&counts| counts).unwrap() + 1).max();
            prop_assert_eq!(longest.unwrap(), batch.tokens[0].len(), "no longer than the longest row");
            for (number, (tokens, mask)) in batch.tokens.iter().zip(&batch.mask).enumerate() {
                prop_assert_eq!(tokens.len(), batch.tokens[0].len());
                let end = mask.iter().rposition(|&counts| counts).unwrap() + 1;
                prop_assert!(tokens[end..].iter().all(|&id| id == BOS));
                check_row(&**task, &tokens[..end], &mask[..end])?;
                // The tasks of one length a batch have other rows by number.
                if !["repeated_sequences", "what_followed", "count_modulo_three", "two_hop_lookup"].contains(&task.name()) {
                    let row = task.row(task.splits()[0], seed, 5 * step + number as u64).unwrap();
                    prop_assert_eq!((&tokens[..end], &mask[..end]), (&row.tokens[..], &row.mask[..]));
                }
            }
        }
    }

    #[test]
    fn no_prompt_at_all_makes_an_oracle_panic(ids in proptest::collection::vec(0u32..120, 0..30)) {
        for task in ALL.iter() {
            task.right(&ids);
            let vocabulary = task.vocabulary() as u32;
            let ids: Vec<u32> = ids.iter().map(|id| id % vocabulary).collect();
            prop_assert!(task.right(&ids).iter().all(|&id| id < vocabulary));
            let row = task.row(task.splits()[0], 0, 0).unwrap();
            // A row with other tokens in the middle is more often nearly a prompt.
            let mixed: Vec<u32> = row.tokens.iter().enumerate().map(|(at, &id)| *ids.get(at).filter(|id| *id % 5 == 0).unwrap_or(&id)).collect();
            prop_assert!(task.right(&mixed).iter().all(|&id| id < vocabulary));
        }
    }
}

#[test]
fn words_are_tokens_of_the_tokenizer() {
    let made: BTreeSet<&str> = MADE.iter().map(|made| made.0).collect();
    assert_eq!(made, TASKS.iter().copied().collect(), "each task is tested here");
    for task in ALL.iter() {
        let words = task.words();
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len(), "{}: a word comes twice", task.name());
        assert!(words.iter().all(|word| !word.is_empty() && !word.contains(char::is_whitespace)));
        assert_eq!(words.len(), task.vocabulary());
        assert!(tokenizer_files(&words, task.length()).is_ok());
    }
}

#[test]
fn what_a_task_does_not_have_is_refused() {
    for task in ALL.iter() {
        let (split, change) = (task.splits()[0], task.changes()[0]);
        for error in [
            task.row("nowhere", 1, 1).unwrap_err(),
            task.pair("nowhere", change, 1, 1).unwrap_err(),
            task.pair(split, "nothing", 1, 1).unwrap_err(),
        ] {
            assert!(matches!(error, Error::UnknownPart { .. }), "{error}");
            assert!(error.to_string().contains(task.name()));
        }
    }
    // One answer to everything: no change can change it.
    let keys =
        toml::from_str("entities = 2\nfacts_per_entity = 1\nrelations = 1\nout_share = 0.5\nheld_out = 0.5").unwrap();
    assert!(task("two_hop_facts", &keys).is_err_and(|error| error.to_string().contains("task.seed")));
}

/// A prompt, and all right answers, in words.
type Read = (&'static str, &'static str);

/// A task, its keys, and prompts.
const READ: &[(&str, &str, &[Read])] = &[
    (
        "repeated_sequences",
        "words = 20\nshortest = 2\nlongest = 6",
        &[
            ("ba da fa ba", "da"),
            ("ba da fa ba da", "fa"),
            ("ba da fa ba da fa", ""),
            ("ba da fa", ""),
            ("ba da fa da", ""),
        ],
    ),
    (
        "repeated_sequences",
        "words = 20\nshortest = 2\nlongest = 6\ndistinct = false",
        &[("ba ba fa ba", "ba"), ("ba ba ba", "ba"), ("ba da ba fa ba", "da"), ("ba fa ba da ba fa ba", "da fa")],
    ),
    (
        "key_value_recall",
        "keys = 4\nvalues = 4\nlongest = 4",
        &[
            ("ba la da ma ? ba", "la"),
            ("ba la da ma ? da", "ma"),
            ("ba la da ma ? da ma ba", "la"),
            ("ba la da ma ? da la ba", ""),
            ("ba la da ma ? fa", ""),
            ("ba la ba ma ? ba", ""),
            ("ba la da ma ?", ""),
            ("ba la da ? ba", ""),
            ("ba la da ma ba", ""),
        ],
    ),
    (
        "modular_addition",
        "modulus = 7",
        &[("3 + 3 =", "6"), ("3 + 4 =", "0"), ("6 + 6 =", "5"), ("3 + 3", ""), ("3 + 3 = 6", ""), ("3 = 3 +", "")],
    ),
    (
        "sorting_with_hints",
        "",
        &[
            ("7 2 10 2 sort", "2"),
            ("7 2 10 2 sort 2", "2"),
            ("7 2 10 2 sort 2 2 7", "10"),
            ("7 2 10 2 sort 2 7", ""),
            ("7 2 10 2 sort 2 2 7 10", ""),
            ("7 2 10 2 successor 7", "10"),
            ("7 2 10 2 successor 2", "2 7"),
            ("7 2 10 2 successor 10", ""),
            ("7 2 10 2 successor 3", ""),
            ("7 2 10 2", ""),
            ("sort 2", ""),
        ],
    ),
    (
        "sorting_with_hints",
        "hint = \"predecessor\"",
        &[("7 2 10 2 predecessor 7", "2"), ("7 2 10 2 predecessor 2", "2"), ("7 2 10 3 predecessor 2", "")],
    ),
    ("sorting_with_hints", "hint = \"count\"", &[("7 2 10 2 count 2", "2"), ("7 2 10 2 count 10", "1")]),
    ("sorting_with_hints", "hint = \"random\"", &[("7 2 10 2 random 2", "2 7 10"), ("7 2 10 2 random 3", "")]),
    ("sorting_with_hints", "repetitions = false", &[("7 2 10 sort", "2"), ("7 2 10 2 sort", "")]),
    (
        "entity_tracking",
        "boxes = 2",
        &[
            ("the apple is in box F , the key is in box Q . box F contains the", "apple"),
            ("the apple is in box F , the key is in box Q . box Q contains the", "key"),
            ("the apple is in box F , the key is in box Q . box A contains the", ""),
            ("the apple is in box F , the key is in box F . box F contains the", ""),
            ("the apple is in box F . box F contains the", ""),
            ("the apple is in box F , the key is in box Q . box Q contains", ""),
        ],
    ),
    (
        "entity_tracking",
        "boxes = 2\nform = \"assignments\"",
        &[
            ("apple = box [ F ] ; key = box [ Q ] . box [ F ] =", "apple"),
            ("apple = box [ F ] ; key = box [ Q ] . box [ Q ] =", "key"),
            ("apple = box [ F ] ; key = box [ Q ] . box [ A ] =", ""),
            ("apple = box [ F ] . key = box [ Q ] . box [ F ] =", ""),
        ],
    ),
    (
        "entity_tracking",
        "boxes = 2\nasked = 2",
        &[
            ("the apple is in box F , the key is in box Q . box F contains the", "apple"),
            ("the apple is in box F , the key is in box Q . box F contains the apple . box Q contains the", "key"),
            ("the apple is in box F , the key is in box Q . box F contains the apple . box F contains the", "apple"),
            ("the apple is in box F , the key is in box Q . box F contains the key . box Q contains the", ""),
            ("the apple is in box F , the key is in box Q . box A contains the key . box Q contains the", ""),
            ("the apple is in box F , the key is in box Q . box F contains the apple", ""),
        ],
    ),
    (
        "entity_tracking",
        "boxes = 2\nasked = 2\nform = \"questions\"",
        &[
            ("the apple is in box F , the key is in box Q . what is in box Q", "key"),
            ("the apple is in box F , the key is in box Q . what is in box Q key . what is in box F", "apple"),
            ("the apple is in box F , the key is in box Q . what is in box Q apple . what is in box F", ""),
            ("the apple is in box F , the key is in box Q . what is in box", ""),
        ],
    ),
    (
        "multiple_choice",
        "",
        &[
            ("capital of france ? ( A ) rome ( B ) paris ( C ) oslo ( D ) bern answer : (", "B"),
            ("capital of norway ? ( A ) rome ( B ) paris ( C ) oslo ( D ) bern answer : (", "C"),
            ("young of cow ? ( ii ) calf ( 3 ) foal ( A ) lamb ( Z ) kid answer : (", "ii"),
            ("capital of spain ? ( A ) rome ( B ) paris ( C ) oslo ( D ) bern answer : (", ""),
            ("capital of france ? ( A ) rome ( A ) paris ( C ) oslo ( D ) bern answer : (", ""),
            ("capital of france ? ( A ) paris ( B ) paris ( C ) oslo ( D ) bern answer : (", ""),
            ("young of france ? ( A ) rome ( B ) paris ( C ) oslo ( D ) bern answer : (", ""),
        ],
    ),
    (
        "indirect_object",
        "",
        &[
            ("when mary and john went to the store , john gave a drink to", "mary"),
            ("when mary and john went to the store , mary gave a drink to", "john"),
            ("then , john and mary met at the park , and john handed a ring to", "mary"),
            ("when mary and john went to the store , paul gave a drink to", ""),
            ("when mary and mary went to the store , mary gave a drink to", ""),
            ("when mary and john went to the store , john passed a drink to", ""),
        ],
    ),
    (
        "laundry_list",
        "",
        &[
            ("on the table are a pen , a cup , a key . he took the key , the pen and the", "cup"),
            ("on the table are a pen , a cup , a key . he took the cup , the pen and the", "key"),
            ("on the table are a pen , a cup , a key . he took the cup , the hat and the", ""),
            ("on the table are a pen , a cup , a key . he took the cup , the cup and the", ""),
            ("on the table are a pen , a cup , a pen . he took the cup , the pen and the", ""),
        ],
    ),
    (
        "dialogues",
        "keys = 4\nvalues = 4\nlongest = 4",
        &[
            ("<system> ba la da ma <end> <user> ? ba <end> <assistant>", "la"),
            ("<system> ba la da ma <end> <user> ? ba <end> <assistant> la", "<end>"),
            ("<system> ba la da ma <end> <user> ? ba <end> <assistant> la <end>", ""),
            ("<system> ba la da ma <end> <user> ? ba <end> <assistant> la <end> <user> ? da <end> <assistant>", "ma"),
            ("<system> ba la da ma <end> <user> ? ba <end> <assistant> ma <end> <user> ? da <end> <assistant>", ""),
            ("<system> ba la da ma <end> <user> ? ba <end> <user>", ""),
            ("<system> ba la da ma <end> <user> ? fa <end> <assistant>", ""),
            ("<system> ba la ba ma <end> <user> ? ba <end> <assistant>", ""),
            ("ba la da ma ? ba", ""),
        ],
    ),
    (
        "dialogues",
        "keys = 4\nvalues = 4\nlongest = 4\nform = \"plain\"",
        &[
            ("ba la da ma ? ba", "la"),
            ("ba la da ma ? ba la ? da", "ma"),
            ("ba la da ma ? ba ma ? da", ""),
            ("ba la da ma ? ba la", ""),
        ],
    ),
    (
        "laundry_list",
        "asked = 2",
        &[
            ("on the table are a pen , a cup , a key . he took the key , the pen and the", "cup"),
            (
                "on the table are a pen , a cup , a key . he took the key , the pen and the cup . he took the cup , the pen and the",
                "key",
            ),
            (
                "on the table are a pen , a cup , a key . he took the key , the pen and the hat . he took the cup , the pen and the",
                "",
            ),
            ("on the table are a pen , a cup , a key . he took the key , the pen and the cup", ""),
        ],
    ),
];

#[test]
fn the_answers_are_those_that_a_reader_would_give() {
    for (name, keys, rows) in READ {
        let task = task(name, &toml::from_str(keys).unwrap()).unwrap();
        let words = task.words();
        let id = |word: &str| words.iter().position(|known| known == word).unwrap_or_else(|| panic!("{word}")) as u32;
        for (prompt, expect) in *rows {
            let ids: Vec<u32> = std::iter::once(BOS).chain(prompt.split(' ').map(id)).collect();
            let found: Vec<&str> = task.right(&ids).iter().map(|&id| words[id as usize].as_str()).collect();
            assert_eq!(found.join(" "), *expect, "{name}: {prompt}");
            assert!(task.right(&ids[1..]).is_empty(), "{name}: without <bos>");
        }
    }
}

#[test]
fn every_question_of_a_row_counts_and_each_asks_something_else() {
    for (name, keys, asked) in [
        ("entity_tracking", "boxes = 4\nasked = 3", 3),
        ("entity_tracking", "boxes = 4\nasked = 9", 4),
        ("entity_tracking", "boxes = 4", 1),
        ("laundry_list", "shortest = 5\nlongest = 5\nasked = 3", 3),
        ("laundry_list", "shortest = 3\nlongest = 3\nasked = 9", 3),
        ("laundry_list", "", 1),
    ] {
        let several = task(name, &toml::from_str(keys).unwrap()).unwrap();
        for number in 0..50 {
            let row = several.row("train", 7, number).unwrap();
            let answers: Vec<u32> = (0..row.tokens.len()).filter(|&at| row.mask[at]).map(|at| row.tokens[at]).collect();
            assert_eq!(answers.len(), asked, "{name}: {keys}");
            assert_eq!(answers.iter().collect::<BTreeSet<_>>().len(), asked, "{name}: {keys}");
        }
    }
}

/// How many of `count` rows of a split fulfil a condition on their words.
fn how_many(name: &str, keys: &str, split: &str, count: u64, is: impl Fn(&str) -> bool) -> usize {
    let task = task(name, &toml::from_str(keys).unwrap()).unwrap();
    let words = task.words();
    let text = |number| {
        let tokens = task.row(split, 3, number).unwrap().tokens;
        tokens.iter().map(|&id| words[id as usize].as_str()).collect::<Vec<_>>().join(" ")
    };
    (0..count).filter(|&number| is(&text(number))).count()
}

#[test]
fn parts_of_the_data_are_as_frequent_as_they_say() {
    let about = |found: usize, expect: usize| assert!(found.abs_diff(expect) < 60, "{found} of 1000, not {expect}");
    about(how_many("sorting_with_hints", "", "train", 1000, |row| row.contains("successor")), 500);
    about(how_many("sorting_with_hints", "hint_share = 0.1", "train", 1000, |row| row.contains("successor")), 100);
    assert_eq!(how_many("sorting_with_hints", "", "longer", 50, |row| row.contains("sort")), 50);
    assert_eq!(how_many("sorting_with_hints", "", "longer", 50, |row| row.split(' ').count() == 122), 50);
    about(how_many("multiple_choice", "", "train", 1000, |row| row.contains("( A )")), 700);
    assert_eq!(how_many("multiple_choice", "", "letters", 50, |row| row.contains("( A )")), 50);
    assert_eq!(how_many("multiple_choice", "", "enumerations", 50, |row| row.contains("( A )")), 0);
    // 4 of 20 labels in random order: one of five alphabets in its order is very rare.
    let listed = |row: &str| {
        ["A )", "E )", "W )", "1 )", "i )"].iter().any(|first| row.split(" ? ( ").nth(1).unwrap().starts_with(first))
    };
    about(how_many("multiple_choice", "", "random", 1000, listed), 250);
    // The receiver comes first as often as second (ABBA, BABA).
    let abba = |row: &str| {
        let words: Vec<&str> = row.split(' ').collect();
        let (first, second) = (
            words.iter().position(|word| word == words.last().unwrap()).unwrap(),
            words.iter().position(|word| *word == "and").unwrap(),
        );
        first < second
    };
    about(how_many("indirect_object", "", "train", 1000, abba), 500);
    // Of 960 facts and 5875 pairs, each as often.
    about(how_many("two_hop_facts", "", "train", 1000, |row| row.split(' ').count() == 5), 140);
}
