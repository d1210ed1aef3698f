//! Names: from what people write to sites. See [`crate::Sites::resolve`] for what is accepted.

use globset::GlobBuilder;

use crate::error::{Error, Result};
use crate::site::{Site, SiteId};

/// Other tools' words for our short names (TransformerLens aliases and interp-engine points).
const ALIASES: &[(&str, &[&str])] = &[
    ("pattern", &["attn", "attn_probs"]),
    ("attn_scores", &["attn_logits"]),
    ("q", &["query"]),
    ("k", &["key"]),
    ("v", &["value"]),
    ("pre", &["mlp_pre"]),
    ("pre_linear", &["mlp_pre_linear"]),
    ("post", &["mlp_post", "mlp_act"]),
    ("logits", &["lm_head"]),
];

/// Looking for the nearest names takes time with the length of a pattern, which may come from anywhere.
const LONGEST: usize = 1000;

/// Every spelling under which a site may be asked for, the full name first.
fn spellings(site: &Site, layers: usize) -> Vec<String> {
    let mut spellings = vec![site.name.clone()];
    let inner = match site.layer {
        Some(layer) => site.name.strip_prefix(&format!("blocks.{layer}.")).unwrap_or(&site.name),
        None => &site.name,
    };
    // `attn.hook_z` -> module `attn`, short `z`; `hook_resid_pre` -> no module.
    let (module, short) = match inner.rsplit_once("hook_") {
        Some((module, short)) => (module.trim_end_matches('.'), short),
        None => ("", inner),
    };
    let mut shorts: Vec<String> = vec![short.to_string()];
    if let Some((_, aliases)) = ALIASES.iter().find(|(name, _)| *name == short) {
        shorts.extend(aliases.iter().map(|alias| alias.to_string()));
    }
    // `scale` alone does not tell ln1 from ln2: the norm must be named; attn and mlp may be.
    let is_norm = module.starts_with("ln");
    let mut stems: Vec<String> = Vec::new();
    if !is_norm {
        stems.extend(shorts.iter().cloned());
    }
    if !module.is_empty() {
        stems.push(format!("{module}.{short}"));
        stems.push(format!("{module}.hook_{short}"));
    }
    let Some(layer) = site.layer else {
        // get_act_name("scale") and get_act_name("normalized") mean the final norm.
        spellings.extend(shorts);
        spellings.extend(stems);
        return spellings;
    };
    for stem in stems {
        spellings.push(format!("{stem}.{layer}"));
        spellings.push(format!("{stem}.{}", layer as i64 - layers as i64));
        spellings.push(stem);
    }
    for short in shorts {
        if !is_norm {
            spellings.push(format!("{short}{layer}"));
        }
        let module_letters: &[&str] = match module {
            "attn" => &["a", "attn"],
            "mlp" => &["m", "mlp"],
            "ln1" => &["ln1"],
            "ln2" => &["ln2"],
            _ => &[],
        };
        spellings.extend(module_letters.iter().map(|letters| format!("{short}{layer}{letters}")));
    }
    spellings
}

/// The sites of `all` that `pattern` stands for; an error with the nearest names if none.
pub(crate) fn resolve(all: &[Site], layers: usize, pattern: &str) -> Result<Vec<SiteId>> {
    if pattern.len() > LONGEST {
        let reason = format!("it has {} bytes; the longest pattern may have {LONGEST}", pattern.len());
        let shown = pattern.chars().take(40).chain(['…']).collect();
        return Err(Error::BadPattern { pattern: shown, reason });
    }
    let found = matching(all, layers, pattern)?;
    if !found.is_empty() {
        return Ok(found);
    }
    if let Some(error) = layer_out_of_range(all, layers, pattern)? {
        return Err(error);
    }
    Err(Error::UnknownSite { pattern: pattern.to_string(), nearest: nearest(all, layers, pattern) })
}

fn matching(all: &[Site], layers: usize, pattern: &str) -> Result<Vec<SiteId>> {
    let glob = pattern
        .contains(['*', '?', '[', '{'])
        .then(|| GlobBuilder::new(pattern).literal_separator(false).build())
        .transpose()
        .map_err(|error| Error::BadPattern { pattern: pattern.to_string(), reason: error.kind().to_string() })?
        .map(|glob| glob.compile_matcher());
    let matches = |site: &Site| match &glob {
        Some(glob) => spellings(site, layers).iter().any(|spelling| glob.is_match(spelling)),
        None => spellings(site, layers).iter().any(|spelling| spelling == pattern),
    };
    Ok(all.iter().enumerate().filter(|(_, site)| matches(site)).map(|(index, _)| SiteId(index)).collect())
}

/// If the pattern would match with its number replaced by 0, the layer is what is wrong.
fn layer_out_of_range(all: &[Site], layers: usize, pattern: &str) -> Result<Option<Error>> {
    let bytes = pattern.as_bytes();
    // Names hold one or two numbers; what holds hundreds is no name.
    let mut numbers = 0;
    for start in 0..bytes.len() {
        let starts_number = bytes[start].is_ascii_digit() && (start == 0 || !bytes[start - 1].is_ascii_digit());
        if !starts_number {
            continue;
        }
        numbers += 1;
        if numbers > 8 {
            return Ok(None);
        }
        let end = bytes[start..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bytes.len(), |n| start + n);
        let signed_start = if start > 0 && bytes[start - 1] == b'-' { start - 1 } else { start };
        let Ok(layer) = pattern[signed_start..end].parse::<i64>() else { continue };
        let repaired = format!("{}0{}", &pattern[..signed_start], &pattern[end..]);
        let in_range = layer < layers as i64 && layer >= -(layers as i64);
        if !in_range && !matching(all, layers, &repaired)?.is_empty() {
            return Ok(Some(Error::LayerOutOfRange { pattern: pattern.to_string(), layer, layers }));
        }
    }
    Ok(None)
}

fn nearest(all: &[Site], layers: usize, pattern: &str) -> Vec<String> {
    let mut scored: Vec<(f64, String)> = all
        .iter()
        .filter_map(|site| {
            spellings(site, layers)
                .into_iter()
                .map(|spelling| (strsim::normalized_damerau_levenshtein(pattern, &spelling), spelling))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(score, spelling)| {
                    // A shorthand that looks alike is shown with the name that it stands for.
                    let shown = if spelling == site.name { spelling } else { format!("{spelling} ({})", site.name) };
                    (score, shown)
                })
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Axis, Role, Sites};

    fn sites() -> Sites {
        let vector = || vec![Axis::batch(), Axis::position(), Axis::dim(4)];
        let mut all = vec![Site::new("hook_embed", None, Role::Embedding, vector())];
        for layer in 0..12 {
            for (name, role) in [
                ("hook_resid_pre", Role::Residual),
                ("ln1.hook_scale", Role::Norm),
                ("attn.hook_q", Role::Attention),
                ("attn.hook_k", Role::Attention),
                ("attn.hook_pattern", Role::Attention),
                ("ln2.hook_scale", Role::Norm),
                ("mlp.hook_pre", Role::Mlp),
                ("hook_resid_post", Role::Residual),
            ] {
                all.push(Site::new(format!("blocks.{layer}.{name}"), Some(layer), role, vector()));
            }
        }
        all.push(Site::new("ln_final.hook_scale", None, Role::Norm, vector()));
        all.push(Site::new("hook_logits", None, Role::Output, vector()));
        Sites::new(all, 12).unwrap()
    }

    fn check(pattern: &str, expected: &[&str]) {
        let sites = sites();
        let found: Vec<_> = sites.resolve(pattern).unwrap().into_iter().map(|id| sites.get(id).name.clone()).collect();
        assert_eq!(found, expected, "{pattern}");
    }

    #[test]
    fn shorthands_of_the_design_and_of_transformer_lens() {
        check("blocks.3.attn.hook_q", &["blocks.3.attn.hook_q"]);
        check("resid_post.5", &["blocks.5.hook_resid_post"]);
        check("resid_post.-1", &["blocks.11.hook_resid_post"]);
        check("pattern.0", &["blocks.0.attn.hook_pattern"]);
        check("attn0", &["blocks.0.attn.hook_pattern"]);
        check("k6", &["blocks.6.attn.hook_k"]);
        check("k6a", &["blocks.6.attn.hook_k"]);
        check("k10", &["blocks.10.attn.hook_k"]);
        check("key6", &["blocks.6.attn.hook_k"]);
        check("scale4ln1", &["blocks.4.ln1.hook_scale"]);
        check("ln2.scale.4", &["blocks.4.ln2.hook_scale"]);
        check("scale", &["ln_final.hook_scale"]);
        check("pre5", &["blocks.5.mlp.hook_pre"]);
        check("mlp_pre.5", &["blocks.5.mlp.hook_pre"]);
        check("embed", &["hook_embed"]);
        check("logits", &["hook_logits"]);
    }

    #[test]
    fn globs_and_bare_kinds_mean_every_layer() {
        assert_eq!(sites().resolve("blocks.*.attn.hook_q").unwrap().len(), 12);
        assert_eq!(sites().resolve("resid_pre").unwrap().len(), 12);
        assert_eq!(sites().resolve("blocks.[01].hook_resid_*").unwrap().len(), 4);
        assert_eq!(sites().resolve("{q,k}.3").unwrap().len(), 2);
        assert_eq!(sites().resolve("*").unwrap().len(), sites().len());
    }

    #[test]
    fn a_typo_is_an_error_with_the_nearest_names() {
        let error = sites().resolve("resid_pots.5").unwrap_err().to_string();
        assert!(error.contains("resid_post.5"), "{error}");
        let error = sites().resolve("blocks.3.attn.hook_querry").unwrap_err().to_string();
        assert!(error.contains("blocks.3.attn.hook_q"), "{error}");
        assert!(matches!(sites().resolve("blocks.[").unwrap_err(), Error::BadPattern { .. }));
        let long = sites().resolve(&"1é".repeat(400)).unwrap_err().to_string();
        assert!(long.contains("1200 bytes") && long.len() < 200, "{long}");
    }

    #[test]
    fn a_layer_out_of_range_says_so() {
        for pattern in ["resid_post.12", "blocks.99.hook_resid_pre", "k12", "resid_post.-13"] {
            let error = sites().resolve(pattern).unwrap_err();
            assert!(matches!(error, Error::LayerOutOfRange { layers: 12, .. }), "{pattern}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(pattern in ".{0,40}") {
            let _ = sites().resolve(&pattern);
        }
    }
}
