//! Rows of tokens that verbs read much of: a long text cut up, a file of ids, or random tokens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_causal::lens::repeated_rows;
use endoscope_models::{Bos, Model};
use endoscope_report::HashedFile;
use serde_json::{Value, json};

use crate::input::BosArguments;

#[derive(Debug, Args)]
pub struct RowArguments {
    /// A text, cut into rows.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token_rows", "random"])]
    text: Option<PathBuf>,
    /// Rows of token ids: a JSON file, [[1, 2, 3], [4, 5]].
    #[arg(long, value_name = "FILE.json", conflicts_with = "random")]
    token_rows: Option<PathBuf>,
    /// So many rows of random tokens, each repeated once.
    #[arg(long, value_name = "ROWS")]
    random: Option<usize>,
    /// How many tokens a row of a text or of random tokens has [default: 64, or the model's context].
    #[arg(long)]
    length: Option<usize>,
    /// Use no more rows than this.
    #[arg(long)]
    rows: Option<usize>,
}

impl RowArguments {
    /// Whether it is said where rows come from.
    pub fn given(&self) -> bool {
        self.text.is_some() || self.token_rows.is_some() || self.random.is_some()
    }

    /// The rows, each of which fits the model's context. What is random comes from the seed.
    pub fn read(&self, model: &Model, bos: BosArguments, seed: u64) -> Result<Vec<Vec<u32>>> {
        let context = model.spec().context;
        let length = self.length.unwrap_or(context.min(64));
        let prefix = || match model.tokenizer().and_then(|tokenizer| tokenizer.encode("", bos.bos())) {
            Ok(encoded) => Ok(encoded.ids),
            Err(error) if matches!(bos.bos(), Bos::Prepend) => Err(error),
            Err(_) => Ok(Vec::new()),
        };
        let most = self.rows.unwrap_or(usize::MAX);
        let rows = match (&self.text, &self.token_rows, self.random) {
            (Some(path), _, _) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the text {}", path.display()))?;
                let ids = model.tokenizer()?.encode(&text, Bos::Omit)?.ids;
                cut(&ids, &prefix()?, length)?
            }
            (_, Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the rows {}", path.display()))?;
                let forms = || format!("{} holds no rows of token ids, [[1, 2, 3], [4, 5]]", path.display());
                serde_json::from_str(&text).with_context(forms)?
            }
            (_, _, Some(count)) => {
                let prefix = prefix()?;
                if length < prefix.len() + 2 {
                    bail!("--length {length} leaves no room for repeated tokens");
                }
                repeated_rows(model.spec().vocabulary as u32, &prefix, length, count.min(most), seed)
            }
            _ => bail!("say which rows of tokens are read: --text FILE, --token-rows FILE.json or --random ROWS"),
        };
        fitting(rows, most, context)
    }

    /// The file that rows are read from, if they are.
    pub fn file(&self) -> Result<Option<HashedFile>> {
        let path: Option<&Path> = self.text.as_deref().or(self.token_rows.as_deref());
        Ok(path.map(|path| HashedFile::read("text", path)).transpose()?)
    }

    /// Where the rows come from, in a few words of JSON.
    pub fn source(&self, seed: u64) -> Result<Value> {
        Ok(match self.file()? {
            Some(file) => json!({"sha256": file.sha256}),
            None => json!({"repeated_random_tokens": seed}),
        })
    }
}

/// The first `most` rows, if each has a token and fits the context.
pub fn fitting(mut rows: Vec<Vec<u32>>, most: usize, context: usize) -> Result<Vec<Vec<u32>>> {
    rows.truncate(most);
    match rows.iter().position(|row| row.is_empty() || row.len() > context) {
        Some(row) => bail!("row {row} has {} tokens; 1 to {context} fit the model's context", rows[row].len()),
        None => Ok(rows),
    }
}

/// A long text as rows of `length` tokens, each with the prefix before it; a last row of one token is left out.
fn cut(ids: &[u32], prefix: &[u32], length: usize) -> Result<Vec<Vec<u32>>> {
    let own = length.saturating_sub(prefix.len());
    if own < 2 {
        bail!("--length {length} leaves no room for two tokens of the text");
    }
    Ok(ids.chunks(own).filter(|chunk| chunk.len() > 1).map(|chunk| [prefix, chunk].concat()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_rows_with_their_prefix() {
        let ids: Vec<u32> = (10..17).collect();
        assert_eq!(cut(&ids, &[1], 4).unwrap(), [vec![1, 10, 11, 12], vec![1, 13, 14, 15]]);
        assert_eq!(cut(&ids, &[], 5).unwrap(), [vec![10, 11, 12, 13, 14], vec![15, 16]]);
        assert!(cut(&ids, &[1], 2).is_err());
        assert!(cut(&[], &[1], 8).unwrap().is_empty());
    }
}
