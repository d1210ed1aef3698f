//! `endoscope patch --donor-model`: the model whose runs give the activations.

use std::path::Path;

use anyhow::{Result, bail};
use endoscope_models::Model;
use endoscope_report::{HashedFile, Provenance};

use crate::input::ModelArgument;

/// Opens the donor in the same way as the model, and checks that tokens mean the same in both. That their sites have the
/// same shapes, the sweep itself sees to.
pub fn open(argument: &ModelArgument, path: &Path, model: &Model) -> Result<Model> {
    let donor = argument.open_other(path)?;
    let (own, other) = (model.spec().vocabulary, donor.spec().vocabulary);
    if own != other {
        bail!(
            "the donor {} has a vocabulary of {other} tokens, {} one of {own}: a token id does not mean the same in both",
            donor.directory.display(),
            model.directory.display()
        );
    }
    // Without tokenizers there are only ids, and nobody to ask.
    if let (Some(ours), Some(theirs)) = (&model.tokenizer, &donor.tokenizer) {
        let (ours, theirs) = (ours.vocabulary(), theirs.vocabulary());
        let ids = ours.keys().chain(theirs.keys());
        if let Some(id) = ids.filter(|id| ours.get(id) != theirs.get(id)).min() {
            let shown = |text: Option<&String>| text.map_or("no token".into(), |text| format!("{text:?}"));
            bail!(
                "the tokenizers differ: id {id} is {} in {} and {} in {}",
                shown(ours.get(id)),
                model.directory.display(),
                shown(theirs.get(id)),
                donor.directory.display()
            );
        }
    }
    Ok(donor)
}

/// Where the donor comes from.
pub fn note(provenance: &mut Provenance, donor: &Model) -> Result<()> {
    for (role, path) in &donor.files {
        provenance.files.push(HashedFile::read(format!("donor {role}"), path)?);
    }
    if let Some(revision) = &donor.revision {
        // Both may be of one repository, such as two checkpoints of a training.
        provenance.revisions.insert(format!("{} (donor)", revision.repository), revision.commit.clone());
    }
    Ok(())
}
