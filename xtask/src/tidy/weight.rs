//! Large files are fetched, not committed: a clone carries them for ever.

use super::Problem;
use crate::tree::{LARGEST, Tree};

/// Files that may be larger, each with its reason beside it.
const HEAVY: [&str; 0] = [];

pub fn check(tree: &Tree) -> Vec<Problem> {
    let large = tree.files.iter().filter(|(path, file)| file.bytes > LARGEST && !HEAVY.contains(&path.as_str()));
    large
        .map(|(path, file)| {
            let mebibytes = |bytes: u64| bytes as f64 / 1_048_576.0;
            let what = format!(
                "{:.1} MiB is above {:.0}: make it smaller, fetch it, or argue for it in HEAVY of xtask/src/tidy/weight.rs",
                mebibytes(file.bytes),
                mebibytes(LARGEST)
            );
            Problem::of(path, what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::File;

    #[test]
    fn a_file_above_the_limit_is_a_problem() {
        let mut tree = Tree::default();
        tree.files.insert("a.bin".to_owned(), File { bytes: LARGEST, text: None });
        tree.files.insert("b.bin".to_owned(), File { bytes: LARGEST + 1, text: None });
        let found: Vec<String> = check(&tree).into_iter().map(|problem| problem.path).collect();
        assert_eq!(found, ["b.bin"]);
    }
}
