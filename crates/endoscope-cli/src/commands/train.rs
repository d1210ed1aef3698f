//! `endoscope train`
use crate::output::Output;
use anyhow::Result;
use clap::Args;
#[derive(Debug, Args)]
pub struct Train {}
impl Train {
    pub fn run(self, _output: &mut Output) -> Result<()> {
        anyhow::bail!("todo")
    }
}
