//! Ways to run the same tokens must give the same logits.

use candle_core::Tensor;
use endoscope_net::{Change, Edit, Frame, Inputs, Network, Padding, Plan, Prepared, Run};

use super::Assertion;
use super::ledger::{Ledger, differing};
use crate::cache::Cache;
use crate::decoder::Decoder;
use crate::error::Result;

/// The logits of one row: `[1, position, vocabulary]`.
fn logits(decoder: &Decoder, tokens: &[u32]) -> Result<Tensor> {
    Ok(decoder.run(&Inputs::tokens(vec![tokens.to_vec()])?, &Plan::default())?.outputs)
}

/// One prompt, of which `read` has captured everything.
pub(super) fn of_one(decoder: &Decoder, tokens: &[u32], read: &Run, ledger: &mut Ledger) -> Result<()> {
    let plain = logits(decoder, tokens)?;
    ledger.measure(Assertion::Repeats, "hook_logits", differing(&logits(decoder, tokens)?, &plain)?);
    for outputs in [&read.outputs, read.captured.get("hook_logits")?] {
        ledger.measure(Assertion::Reading, "hook_logits", differing(outputs, &plain)?);
    }
    // An edit of a copy of the stream takes its reader away from the layer's norm, so that both are not edited at once.
    for copies in [false, true] {
        let mut same = Plan::default();
        for (site, activation) in read.captured.iter().filter(|(site, _)| site.ends_with("_input") == copies) {
            same = same.edit(Edit::new(site, Change::Patch { source: activation.clone().into() }));
        }
        let patched = decoder.run(&Inputs::tokens(vec![tokens.to_vec()])?, &same)?;
        ledger.compare(Assertion::WritingBack, "hook_logits", &patched.outputs, &plain)?;
    }
    // From the first token on one by one; and as generation does, half at once and the others one by one.
    for together in [1, tokens.len().div_ceil(2)] {
        ledger.measure(Assertion::Cache, "hook_logits", differing(&continued(decoder, tokens, together)?, &plain)?);
    }
    Ok(())
}

/// The logits of one row, whose first tokens are run together, and each other after those before it.
fn continued(decoder: &Decoder, tokens: &[u32], together: usize) -> Result<Tensor> {
    let plan = Plan::default();
    let prepared = Prepared::new(decoder.sites(), &plan)?;
    let mut cache = Cache::new(&decoder.spec, tokens.len());
    let mut steps = Vec::new();
    let mut done = 0;
    while done < tokens.len() {
        let length = if done == 0 { together } else { 1 };
        let frame = Frame { offset: done, length, ..Frame::whole(1, tokens.len()) };
        let now = [tokens[done..done + length].to_vec()];
        let runs = decoder.forward(&now, &prepared, &[frame], Some(vec![&mut cache]))?;
        steps.extend(runs.into_iter().map(|run| run.outputs));
        done += length;
    }
    Ok(Tensor::cat(&steps, 1)?)
}

/// All prompts together.
pub(super) fn of_many(decoder: &Decoder, prompts: &[Vec<u32>], ledger: &mut Ledger) -> Result<()> {
    let Some(longest) = prompts.iter().max_by_key(|prompt| prompt.len()) else { return Ok(()) };
    let mut turned = longest.clone();
    turned.rotate_left(1);
    let rows = [longest.clone(), longest.iter().rev().copied().collect(), turned];
    let together = decoder.run(&Inputs::tokens(rows.to_vec())?, &Plan::default())?.outputs;
    for (number, row) in rows.iter().enumerate() {
        let found = together.narrow(0, number, 1)?;
        ledger.measure(Assertion::Batch, "hook_logits", differing(&found, &logits(decoder, row)?)?);
    }
    if prompts.iter().all(|prompt| prompt.len() == longest.len()) {
        ledger.note(Assertion::Padding, "all prompts are of one length".into());
        return Ok(());
    }
    for padding in [Padding::Left, Padding::Right] {
        let together = decoder.run(&Inputs::padded(prompts.to_vec(), padding)?, &Plan::default())?.outputs;
        for (number, prompt) in prompts.iter().enumerate() {
            let start = match padding {
                Padding::Left => longest.len() - prompt.len(),
                Padding::Right => 0,
            };
            let found = together.narrow(0, number, 1)?.narrow(1, start, prompt.len())?;
            ledger.prompt = Some(number);
            ledger.measure(Assertion::Padding, "hook_logits", differing(&found, &logits(decoder, prompt)?)?);
        }
    }
    ledger.prompt = None;
    Ok(())
}
