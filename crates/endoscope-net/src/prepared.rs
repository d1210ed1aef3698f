//! Plans checked against the sites of a network, before anything runs.

use std::collections::HashMap;

use crate::change::{Finite, PreparedEdit};
use crate::error::{Error, Result};
use crate::plan::{Capture, Plan};
use crate::selection::{Index, Selection};
use crate::site::{SiteId, Sites};

/// A plan that fits a network: patterns resolved, axes, sizes and values checked.
#[derive(Debug)]
pub struct Prepared<'a> {
    pub(crate) sites: &'a Sites,
    pub(crate) actions: HashMap<SiteId, Actions>,
    pub(crate) outputs: Outputs,
    pub(crate) columns: Index,
}

/// Which outputs a run reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outputs {
    /// Those at the plan's positions.
    At(Index),
    /// That of the last position computed, whichever that is.
    LastComputed,
}

/// What is done at one site.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    pub edits: Vec<PreparedEdit>,
    pub capture: Option<CaptureAction>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CaptureAction {
    pub select: Selection,
    pub gradient: bool,
}

impl<'a> Prepared<'a> {
    /// Checks `plan` against `sites`.
    pub fn new(sites: &'a Sites, plan: &Plan) -> Result<Self> {
        Self::with(sites, plan, &mut Finite::default())
    }

    /// Checks several plans, each value that they share once.
    pub fn all(sites: &'a Sites, plans: &[Plan]) -> Result<Vec<Self>> {
        let mut finite = Finite::default();
        plans.iter().map(|plan| Self::with(sites, plan, &mut finite)).collect()
    }

    fn with(sites: &'a Sites, plan: &Plan, finite: &mut Finite) -> Result<Self> {
        let mut actions: HashMap<SiteId, Actions> = HashMap::new();
        for edit in &plan.edits {
            for id in sites.resolve(&edit.site)? {
                let edit = PreparedEdit::new(sites.get(id), edit, finite)?;
                actions.entry(id).or_default().edits.push(edit);
            }
        }
        for capture in &plan.captures {
            for id in sites.resolve(&capture.site)? {
                add_capture(actions.entry(id).or_default(), sites, id, capture)?;
            }
        }
        Ok(Self { sites, actions, outputs: Outputs::At(plan.outputs.clone()), columns: plan.columns.clone() })
    }

    /// Reading the whole outputs of the last position computed, and no others: what generation needs.
    pub fn reading_last(mut self) -> Self {
        self.outputs = Outputs::LastComputed;
        self.columns = Index::All;
        self
    }

    /// The sites that it was checked against.
    pub fn sites(&self) -> &'a Sites {
        self.sites
    }

    /// Whether a run reads or changes this site, so that its tensor must be built.
    pub fn wants(&self, id: SiteId) -> bool {
        self.actions.contains_key(&id)
    }

    /// Whether a run changes this site.
    pub fn edits(&self, id: SiteId) -> bool {
        self.actions.get(&id).is_some_and(|actions| !actions.edits.is_empty())
    }
}

/// Overlapping patterns may name a site twice; that is one capture if they agree on the selection.
fn add_capture(actions: &mut Actions, sites: &Sites, id: SiteId, capture: &Capture) -> Result<()> {
    capture.select.check(sites.get(id))?;
    let new = CaptureAction { select: capture.select.clone(), gradient: capture.gradient };
    match &mut actions.capture {
        None => actions.capture = Some(new),
        Some(old) if old.select == new.select => old.gradient |= new.gradient,
        Some(_) => return Err(Error::CapturedTwice(sites.get(id).name.clone())),
    }
    Ok(())
}
