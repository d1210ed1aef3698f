//! What was meant for later is not committed: it is an issue, or it is done.

use super::Problem;
use crate::tree::Tree;

const UNFINISHED: [(&[&str], &str); 4] = [
    (&["todo", "!"], "finish it, or return an error that says what is not supported"),
    (&["unimplemented", "!"], "finish it, or return an error that says what is not supported"),
    (&["dbg", "!"], "remove it"),
    (&["#", "[", "ignore"], "mend the test or delete it: a test that does not run says nothing"),
];

/// Written in two parts, so that this file is not its own first finding.
const MARKERS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Endings of the files that people write. Others are data: a tokenizer may well know these words.
const WRITTEN: [&str; 11] = [".rs", ".py", ".js", ".ts", ".css", ".html", ".md", ".toml", ".sh", ".yml", "/run"];

pub fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in &tree.sources {
        for (pattern, remedy) in UNFINISHED {
            let what = format!("{} is left over: {remedy}", pattern.concat());
            problems.extend(source.find(pattern).map(|line| Problem::at(&source.path, line, what.clone())));
        }
    }
    let written = tree.texts().filter(|(path, _)| WRITTEN.iter().any(|ending| path.ends_with(ending)));
    for (path, text) in written {
        for (index, line) in text.lines().enumerate() {
            let words = line.split(|character: char| !character.is_alphanumeric() && character != '_');
            for word in words.filter(|word| MARKERS.contains(word)) {
                let what = format!("{word} is left over: do it now, or open an issue and say here what is so");
                problems.push(Problem::at(path, index + 1, what));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::places;

    #[test]
    fn each_leftover_is_a_problem() {
        for (code, line) in [
            ("fn f() { todo!() }", 1),
            ("fn f() {\n    unimplemented!(\"later\")\n}", 2),
            ("fn f() { dbg!(1); }", 1),
            ("#[test]\n#[ignore]\nfn f() {}", 2),
            ("#[test]\n#[ignore = \"slow\"]\nfn f() {}", 2),
            (concat!("// TO", "DO: more\n"), 1),
        ] {
            assert_eq!(
                places(check, &[("crates/a/tests/a.rs", code)]),
                [format!("crates/a/tests/a.rs:{line}")],
                "{code}"
            );
        }
        assert_eq!(places(check, &[("tools/a.py", concat!("x = 1  # FIX", "ME(me)\n"))]), ["tools/a.py:1"]);
    }

    #[test]
    fn doc_comments_longer_words_and_data_are_not_leftovers() {
        let code = concat!("/// # fn f() { unimplemented!() }\n// TO", "DOS\nfn ignore() {}\n");
        let data = concat!("{\"TO", "DO\": 1}\n");
        assert_eq!(places(check, &[("crates/a/src/a.rs", code), ("organisms/a/tokenizer.json", data)]), [""; 0]);
    }
}
