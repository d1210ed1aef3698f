//! What holds of every study, whoever writes it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use endoscope_studies::{Lab, Level, STUDIES, papers, study};

#[test]
fn each_is_of_a_paper_and_no_paper_has_two() {
    let mut slugs: Vec<&str> = STUDIES.iter().map(|study| study.slug()).collect();
    for slug in &slugs {
        assert!(papers().unwrap().iter().any(|card| card.slug == *slug && card.title.is_some()), "{slug} has no card");
        assert_eq!(study(slug).unwrap().slug(), *slug);
    }
    slugs.sort_unstable();
    slugs.dedup();
    assert_eq!(slugs.len(), STUDIES.len());
}

#[test]
fn each_setting_is_described_and_its_defaults_are_in_its_range() {
    for study in STUDIES {
        let settings = study.settings();
        for setting in &settings {
            let (slug, key) = (study.slug(), &setting.key);
            assert!(setting.about.ends_with('.') && !setting.range.is_empty(), "{slug}: {key} is not described");
            for (level, value) in [(Level::Full, &setting.full), (Level::Smoke, &setting.smoke)] {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                let read = study.configured(level, &[format!("{key}={text}")]).unwrap();
                assert_eq!(&read[key.as_str()], value, "{slug}: {key}");
            }
        }
        assert_eq!(study.schema()["properties"].as_object().unwrap().len(), settings.len());
        let unknown = study.configured(Level::Full, &["no-such-key=1".into()]).unwrap_err().to_string();
        assert!(unknown.contains(study.slug()) && unknown.contains("no-such-key"), "{unknown}");
    }
}

#[test]
fn each_runs_at_the_level_smoke_and_repeats_bit_for_bit() {
    for study in STUDIES {
        let run = || {
            // Not the seeds on which it is judged.
            let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
            study.report(&lab, &[]).unwrap()
        };
        let report = run();
        assert!(!report.claims.is_empty() && report.tables.contains_key("figures"), "{}", study.slug());
        assert_eq!(report.tables["figures"].shape(), [report.claims.len(), 2, 3]);
        assert_eq!(report, run(), "{}", study.slug());
    }
}

#[test]
fn each_declares_its_seeds_and_its_page() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/studies");
    for study in STUDIES {
        assert!(Lab::new(Level::Full, study.seeds().to_vec()).is_ok(), "{}: its seeds", study.slug());
        assert!(docs.join(format!("{}.md", study.slug())).is_file(), "{}: its page", study.slug());
    }
}

#[test]
fn the_page_lists_the_catalogue_and_what_each_study_gave() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/studies.md");
    let page = std::fs::read_to_string(page).unwrap();
    for card in papers().unwrap() {
        let runs = STUDIES.iter().any(|study| study.slug() == card.slug);
        let study = if runs { format!("[runs](studies/{}.md)", card.slug) } else { "-".into() };
        let row = format!("| {} | {} | `{}` | {study} |\n", card.number, card.heading(), card.slug);
        assert!(page.contains(&row), "docs/studies.md lacks the row\n{row}");
    }
    for study in STUDIES {
        let card = study.card().unwrap();
        let row = format!("\n| {}. {} | ", card.number, card.heading());
        assert!(page.contains(&row), "docs/studies.md has nothing of what {} gave; run tools/studies.sh", card.slug);
    }
}

#[test]
fn a_paper_without_a_study_says_so() {
    let error = |slug: &str| study(slug).err().unwrap().to_string();
    assert!(
        error("reservoir-balance").contains("no study yet") && error("reservoir-balance").contains("talking-heads")
    );
    assert!(error("talking-haeds").contains("nearest: talking-heads"), "{}", error("talking-haeds"));
    assert!(!error("zzz").contains("nearest"), "{}", error("zzz"));
}
