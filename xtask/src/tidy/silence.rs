//! Nothing below the binary prints or ends the process.

use super::Problem;
use crate::tree::Tree;

/// The crates that speak to a person.
const SPEAKERS: [&str; 2] = ["endoscope-cli", "xtask"];

const LOUD: [&[&str]; 8] = [
    &["print", "!"],
    &["println", "!"],
    &["eprint", "!"],
    &["eprintln", "!"],
    &["io", ":", ":", "stdout"],
    &["io", ":", ":", "stderr"],
    &["process", ":", ":", "exit"],
    &["process", ":", ":", "abort"],
];

pub fn check(tree: &Tree) -> Vec<Problem> {
    let quiet = tree.sources.iter().filter(|source| source.house().is_some_and(|name| !SPEAKERS.contains(&name)));
    quiet
        .flat_map(|source| {
            LOUD.iter().flat_map(move |pattern| {
                let lines = source.find(pattern).filter(|line| !source.is_test_line(*line));
                lines.map(move |line| {
                    let what = format!(
                        "{} in a library: return a value or an error, and let {} say it",
                        pattern.concat(),
                        SPEAKERS[0]
                    );
                    Problem::at(&source.path, line, what)
                })
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::places;

    #[test]
    fn a_library_that_prints_or_exits_is_a_problem() {
        let text = "fn f() {\n    println!();\n    std::process::exit(1);\n    write!(std::io::stderr(), \"\");\n}\n";
        let found = places(check, &[("crates/endoscope-net/src/a.rs", text)]);
        assert_eq!(
            found,
            ["crates/endoscope-net/src/a.rs:2", "crates/endoscope-net/src/a.rs:4", "crates/endoscope-net/src/a.rs:3"]
        );
    }

    #[test]
    fn the_binary_tests_examples_and_doc_comments_may_print() {
        let loud = "fn f() { println!(); std::process::exit(1) }\n";
        let quiet = "/// println!()\nfn f() {}\n#[cfg(test)]\nmod tests { fn g() { eprintln!() } }\n";
        let files = [
            ("crates/endoscope-cli/src/main.rs", loud),
            ("xtask/src/main.rs", loud),
            ("crates/endoscope-net/tests/a.rs", loud),
            ("crates/endoscope-net/examples/a.rs", loud),
            ("crates/endoscope-net/src/a.rs", quiet),
        ];
        assert_eq!(places(check, &files), [""; 0]);
    }
}
