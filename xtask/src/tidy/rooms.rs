//! A file is a room: one that grew too long wants a wall, and a crate's root stays an entrance.

use super::Problem;
use crate::source::Source;
use crate::tree::Tree;

/// Lines of a file, and of a crate's root, that are not tests.
const ROOM: usize = 600;
const ENTRANCE: usize = 150;

pub fn check(tree: &Tree) -> Vec<Problem> {
    tree.sources.iter().filter_map(room).collect()
}

fn room(source: &Source) -> Option<Problem> {
    let lines = (1..=source.text.lines().count()).filter(|line| !source.is_test_line(*line)).count();
    let entrance = source.path.ends_with("/src/lib.rs") || source.path.ends_with("/src/main.rs");
    let what = match lines {
        _ if entrance && lines > ENTRANCE => {
            format!(
                "a crate's root of {lines} lines: keep it under {ENTRANCE}, and move what is not an introduction to modules"
            )
        }
        _ if lines > ROOM => {
            format!("{lines} lines besides its tests: split it, so that each file has one job and at most {ROOM}")
        }
        _ => return None,
    };
    Some(Problem::of(&source.path, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::places;

    fn lines(count: usize) -> String {
        "// line\n".repeat(count)
    }

    #[test]
    fn long_rooms_and_long_entrances_are_problems() {
        let (long, fits) = (lines(601), lines(600));
        let (long_root, root) = (lines(151), lines(150));
        let files = [
            ("crates/a/src/fits.rs", fits.as_str()),
            ("crates/a/src/lib.rs", &root),
            ("crates/a/src/long.rs", &long),
            ("crates/b/src/lib.rs", &long_root),
            ("crates/c/src/main.rs", &long_root),
            ("crates/c/examples/long.rs", &long),
        ];
        let expected =
            ["crates/a/src/long.rs", "crates/b/src/lib.rs", "crates/c/src/main.rs", "crates/c/examples/long.rs"];
        assert_eq!(places(check, &files), expected);
    }

    #[test]
    fn tests_are_not_counted() {
        let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(600), lines(600));
        let tests = lines(1000);
        let files = [
            ("crates/a/src/a.rs", with_tests.as_str()),
            ("crates/a/src/a/tests.rs", &tests),
            ("crates/a/tests/b.rs", &tests),
        ];
        assert_eq!(places(check, &files), [""; 0]);
        let code_after = format!("{with_tests}fn late() {{}}\n");
        assert_eq!(places(check, &[("crates/a/src/a.rs", &code_after)]), ["crates/a/src/a.rs"]);
    }
}
