//! Many plans on one prompt: each computed from the first activation that it changes, on the positions that it reaches.
//!
//! Exact, by these rules: nothing below the first changed site is recomputed, since it is the base run's; by causality
//! no position before the first changed one either, whose keys and values are the base run's; a change at a linear site
//! is added to the residual stream as the matrix maps it; in the last layer only rows are finished whose outputs are
//! read. A branch joins the pass where its change enters the residual stream, so that all branches of a sweep go
//! through the upper layers together.

use candle_core::{DType, Device, Tensor};
use endoscope_kernels::attention::KeysValues;
use endoscope_net::{
    AxisName, Base, Cost, Edit, Effect, Error, Frame, Index, Inputs, Network, Plan, Prepared, Result, Resume, Run,
    SiteId, Size, Tap, Taps, TokenRows, Work,
};

use crate::decoder::{Compute, Decoder, MlpWeights, in_pool, tokens_of};
use crate::pass::{End, Memory, Pass, first_read};
use crate::spec::Order;

/// What a base run keeps for its branches: streams `[s, d]`, but for the last as they were before edits of the site itself.
struct State {
    /// The residual stream before each layer.
    starts: Vec<Tensor>,
    /// And between its halves.
    middles: Vec<Tensor>,
    /// And after it.
    ends: Vec<Tensor>,
    /// After all layers, as the unembedding reads it.
    last: Tensor,
    keys_values: Vec<KeysValues>,
    /// The plan of the base run itself.
    plan: Plan,
}

/// Where a branch joins the pass: in the order of the pass. After all layers it is the start of one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    layer: usize,
    half: Half,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Half {
    Start,
    Middle,
    End,
}

impl Place {
    fn start(layer: usize) -> Self {
        Self { layer, half: Half::Start }
    }

    fn middle(layer: usize) -> Self {
        Self { layer, half: Half::Middle }
    }

    fn end(layer: usize) -> Self {
        Self { layer, half: Half::End }
    }
}

/// How a branch starts.
#[derive(Debug)]
struct Start {
    place: Place,
    /// The first position that it computes.
    first: usize,
    /// What its rows are.
    rows: Rows,
}

impl Start {
    /// Starts at all positions instead, no later than `place`; where a sum was known, from the layer that makes it.
    fn restart(&mut self, place: Place) {
        self.place = self.place.min(place);
        self.first = 0;
        if let Rows::Plus(_) = self.rows {
            (self.place, self.rows) = (Place::start(self.place.layer), Rows::Base);
        }
    }
}

#[derive(Debug)]
enum Rows {
    /// The base run's.
    Base,
    /// The base run's plus this, `[s - first, d]`.
    Plus(Tensor),
    /// A new embedding.
    Embedded,
}

/// What is to be done for a plan.
enum Task {
    /// The base run's outputs are the branch's, or it reads none.
    Nothing { reads: bool },
    /// A run on its own: gradients, unless they end at the last residual stream, and captures of embeddings.
    Whole,
    Branch {
        start: Start,
        /// The end of what matters, where no output is read: the middle or the end of a layer.
        stop: Option<Place>,
    },
}

/// A plan made ready for its base.
struct Ready<'a> {
    all: Prepared<'a>,
    /// Without the edits that the base run has made too.
    own: Prepared<'a>,
    plan: &'a Plan,
}

impl Resume for Decoder {
    fn base(&self, inputs: &Inputs, plan: &Plan) -> Result<Base> {
        let tokens = tokens_of(inputs)?;
        if tokens.rows() != 1 {
            return Err(Error::Inputs(format!("a base run takes one prompt, not {}", tokens.rows())));
        }
        let prepared = Prepared::new(self.sites(), plan)?;
        in_pool(|| {
            let mut taps = Taps::default();
            taps.push(Tap::new(&prepared, Frame::whole(1, tokens.length()))?);
            let stream = self.embed(tokens.ids(), &mut taps)?;
            let mut keys_values = Vec::with_capacity(self.spec.layers);
            let (mut starts, mut middles, mut ends) = (Vec::new(), Vec::new(), Vec::new());
            let mut pass = Pass::new(self, taps, stream, Memory::Keep(&mut keys_values));
            for layer in 0..self.spec.layers {
                starts.push(pass.stream.clone());
                pass.attend(layer)?;
                middles.push(pass.stream.clone());
                pass.reach_middle(layer)?;
                pass.transform(layer)?;
                ends.push(pass.stream.clone());
                pass.reach_end(layer)?;
            }
            let last = pass.stream.clone();
            let run = pass.finish()?.remove(0);
            let state = State { starts, middles, ends, last, keys_values, plan: plan.clone() };
            Ok(Base { inputs: inputs.clone(), run, state: Box::new(state) })
        })
    }

    fn costs(&self, base: &Base, plans: &[Plan]) -> Result<Vec<Cost>> {
        let state = state_of(base)?;
        let tokens = tokens_of(&base.inputs)?;
        let ready = self.ready(state, plans)?;
        ready.iter().map(|ready| self.cost(&self.task(base, state, ready)?, ready, tokens.length())).collect()
    }

    fn branches(&self, base: &Base, plans: &[Plan]) -> Result<Vec<Run>> {
        let state = state_of(base)?;
        let ready = self.ready(state, plans)?;
        in_pool(|| {
            let mut runs: Vec<Option<Run>> = plans.iter().map(|_| None).collect();
            let mut starts: Vec<(usize, Start, Option<Place>)> = Vec::new();
            for (at, ready) in ready.iter().enumerate() {
                match self.task(base, state, ready)? {
                    Task::Nothing { reads } => {
                        let tap = Tap::new(&ready.all, Frame::whole(1, tokens_of(&base.inputs)?.length()))?;
                        let outputs = match tap.output_columns(self.spec.vocabulary)? {
                            _ if !reads => nothing_read()?,
                            None => base.run.outputs.clone(),
                            Some(columns) => {
                                let columns: Vec<u32> = columns.into_iter().map(|column| column as u32).collect();
                                let columns = Tensor::new(columns, &Device::Cpu)?;
                                base.run.outputs.contiguous()?.index_select(&columns, 2)?
                            }
                        };
                        runs[at] = Some(tap.finish(outputs, Work::default()));
                    }
                    Task::Whole => runs[at] = Some(self.run(&base.inputs, &plans[at])?),
                    Task::Branch { start, stop } => starts.push((at, start, stop)),
                }
            }
            // Those that stop early go on their own.
            starts.sort_by_key(|(at, start, stop)| (*stop, start.place, *at));
            for group in starts.chunk_by(|a, b| a.2 == b.2) {
                for (at, run) in self.pass(base, state, &ready, group)? {
                    runs[at] = Some(run);
                }
            }
            runs.into_iter().map(|run| run.ok_or_else(|| Error::Network("a branch did not run".into()))).collect()
        })
    }
}

fn state_of(base: &Base) -> Result<&State> {
    base.state.downcast_ref().ok_or_else(|| Error::Network("the base run is another network's".into()))
}

impl Decoder {
    fn ready<'a>(&'a self, state: &State, plans: &'a [Plan]) -> Result<Vec<Ready<'a>>> {
        let shared: &[Edit] = &state.plan.edits;
        if let Some(other) = plans.iter().position(|plan| !plan.edits.starts_with(shared)) {
            let reason =
                format!("plan {other} does not begin with the edits of the base run, so it is no branch of it");
            return Err(Error::Network(reason));
        }
        let without = |plan: &Plan| Plan { edits: plan.edits[shared.len()..].to_vec(), ..plan.clone() };
        let own: Vec<Plan> = plans.iter().map(without).collect();
        let (all, own) = (Prepared::all(self.sites(), plans)?, Prepared::all(self.sites(), &own)?);
        Ok(all.into_iter().zip(own).zip(plans).map(|((all, own), plan)| Ready { all, own, plan }).collect())
    }

    /// What must be computed for a plan.
    fn task(&self, base: &Base, state: &State, ready: &Ready) -> Result<Task> {
        let tokens = tokens_of(&base.inputs)?;
        let frame = Frame::whole(1, tokens.length());
        let sites = self.sites();
        let captured = ready.all.captured_sites();
        // A value that is trained at the last residual stream needs no gradient before it; anywhere else a run on its own.
        let last_stream = self.sites.layers[self.spec.layers - 1].resid_post;
        let at_the_end = ready.own.edited_sites() == [last_stream] && captured.is_empty();
        if ready.all.needs_graph() && !at_the_end {
            return Ok(Task::Whole);
        }
        let embeddings = |id: &SiteId| id.0 < self.sites.layers[0].resid_pre.0;
        if captured.iter().any(embeddings) {
            return Ok(Task::Whole);
        }
        let tap = Tap::new(&ready.all, frame)?;
        let late = captured.iter().any(|&id| sites.get(id).layer.is_none());
        let reads = tap.output_positions()?.is_none_or(|positions| !positions.is_empty());
        if !reads && captured.is_empty() {
            return Ok(Task::Nothing { reads });
        }
        let mut start = self.first_effect(base, ready, frame)?;
        if let Some(start) = start.as_mut().filter(|start| start.first > 0 && ready.all.mixes_positions()) {
            start.restart(Place::start(start.place.layer));
        }
        // What is captured in half a layer is computed anew, at every position.
        let halves: Vec<(Place, Place)> = captured.iter().filter_map(|&id| self.half_of(id)).collect();
        if let Some(&(place, _)) = halves.first() {
            let start = start.get_or_insert(Start { place, first: 0, rows: Rows::Base });
            start.restart(place);
        }
        let after = Place::start(self.spec.layers);
        let mut start = match start {
            Some(start) => start,
            None if !late && ready.plan.outputs == state.plan.outputs && state.plan.columns == Index::All => {
                return Ok(Task::Nothing { reads });
            }
            None => Start { place: after, first: 0, rows: Rows::Base },
        };
        let last = self.spec.layers - 1;
        if start.place >= Place::middle(last)
            && let Some(read) = first_read(&tap, last)?
            && read > start.first
        {
            if let Rows::Plus(delta) = &start.rows {
                let cut = read - start.first;
                start.rows = Rows::Plus(delta.narrow(0, cut, delta.dim(0)? - cut)?);
            }
            start.first = read;
        }
        let stop = match reads || late {
            true => None,
            false => halves.last().map(|&(_, end)| end),
        };
        Ok(Task::Branch { start, stop })
    }

    /// Where the half of a layer that a site lies in begins and ends.
    fn half_of(&self, id: SiteId) -> Option<(Place, Place)> {
        let layer = self.sites().get(id).layer?;
        let (start, middle, end) = (Place::start(layer), Place::middle(layer), Place::end(layer));
        Some(match self.spec.order {
            Order::Sequential if id.0 <= self.sites.layers[layer].resid_mid.0 => (start, middle),
            Order::Sequential => (middle, end),
            Order::Parallel | Order::ParallelSharedNorm => (start, end),
        })
    }

    /// The first site that a plan changes, as a place to start from, at the first position that any of its sites
    /// changes; none if it changes nothing.
    fn first_effect(&self, base: &Base, ready: &Ready, frame: Frame) -> Result<Option<Start>> {
        let mut first_site = None;
        let mut first = frame.length;
        for id in ready.own.edited_sites() {
            let site = self.sites().get(id);
            let whole = |tensor: &&Tensor| {
                tensor.rank() == site.axes.len()
                    && site.axes.iter().zip(tensor.dims()).all(|(axis, &dim)| match (axis.size, axis.name) {
                        (Size::Fixed(size), _) => size == dim,
                        (Size::Input, AxisName::Batch) => dim == 1,
                        (Size::Input, _) => dim == frame.length,
                    })
            };
            let known = base.run.captured.get(&site.name).ok().filter(whole);
            // Before the first changed position every site is still the base run's.
            if let Effect::From { position, value } = ready.own.effect(id, known, frame)? {
                let late = site.layer.is_none() && id.0 > self.sites.layers[0].resid_pre.0;
                first = first.min(if late { frame.length } else { position });
                first_site.get_or_insert((id, known.cloned().zip(value)));
            }
        }
        let Some((id, change)) = first_site else { return Ok(None) };
        let Some(layer) = self.sites().get(id).layer else {
            return Ok(Some(match id.0 < self.sites.layers[0].resid_pre.0 {
                true => Start { place: Place::start(0), first, rows: Rows::Embedded },
                false => Start { place: Place::start(self.spec.layers), first: 0, rows: Rows::Base },
            }));
        };
        let sites = &self.sites.layers[layer];
        // The sum that a linear site enters, unless something else happens on the way.
        let sequential = self.spec.order == Order::Sequential;
        let (place, sum, end) = if !sequential && id.0 < sites.resid_post.0 {
            // Attention and MLP start together and end together.
            (Place::start(layer), Place::end(layer), sites.resid_post.0)
        } else if sequential && id.0 < sites.resid_mid.0 {
            (Place::start(layer), Place::middle(layer), sites.resid_mid.0)
        } else if id.0 < sites.resid_post.0 {
            (Place::middle(layer), Place::end(layer), sites.resid_post.0)
        } else {
            (Place::end(layer), Place::end(layer), id.0)
        };
        let alone = !(id.0 + 1..end).any(|id| ready.all.wants(SiteId(id)));
        if let Some((before, after)) = change.filter(|_| alone)
            && let Some(delta) = self.written(layer, id, &before, &after, first)?
        {
            return Ok(Some(Start { place: sum, first, rows: Rows::Plus(delta) }));
        }
        Ok(Some(Start { place, first, rows: Rows::Base }))
    }

    /// What a change of a site that maps linearly to the residual stream adds to it: `[s - first, d]`.
    fn written(
        &self,
        layer: usize,
        id: SiteId,
        before: &Tensor,
        after: &Tensor,
        first: usize,
    ) -> Result<Option<Tensor>> {
        let sites = &self.sites.layers[layer];
        let weights = &self.weights.layers[layer];
        let whole = [sites.attn_out, sites.mlp_out].contains(&id);
        let raw = [sites.z, sites.result, sites.post, sites.attn_out_raw, sites.mlp_out_raw].contains(&id);
        // A norm on the way out is not linear, and neither is rounding.
        if self.compute == Compute::Bf16 || (!whole && (!raw || self.spec.placement.after())) {
            return Ok(None);
        }
        let change = (after - before)?.squeeze(0)?;
        let change = change.narrow(0, first, change.dim(0)? - first)?.contiguous()?;
        // An infinity or a NaN does not add up.
        let finite = change.abs()?.max_all()?.to_scalar::<f32>()?.is_finite();
        let rows = change.dim(0)?;
        let through = |linear: &crate::ops::Linear, change: Tensor| -> Result<Tensor> {
            let width = change.dim(1)?;
            // The inputs that change, and those between them.
            let values = change.flatten_all()?.to_vec1::<f32>()?;
            let changed = |column: &usize| values.iter().skip(*column).step_by(width).any(|&value| value != 0.);
            let from = (0..width).find(changed).unwrap_or(0);
            let to = (from..width).rev().find(changed).unwrap_or(from) + 1;
            Ok(linear.forward_part(&change.narrow(1, from, to - from)?.contiguous()?, from..to)?)
        };
        let delta = match (id, &weights.mlp) {
            _ if !finite => return Ok(None),
            (id, _) if id == sites.z => through(&weights.attention.o, change.reshape((rows, ()))?)?,
            (id, _) if id == sites.result => change.sum(1)?,
            (id, MlpWeights::Dense(mlp)) if id == sites.post => through(&mlp.down, change)?,
            _ => change,
        };
        let scale = if whole { 1. } else { self.spec.residual_scale };
        Ok(Some(if scale == 1. { delta } else { (delta * scale)? }))
    }

    /// What a task costs.
    fn cost(&self, task: &Task, ready: &Ready, length: usize) -> Result<Cost> {
        let spec = &self.spec;
        let tap = Tap::new(&ready.all, Frame::whole(1, length))?;
        let columns = tap.output_columns(spec.vocabulary)?.map_or(spec.vocabulary, |columns| columns.len()) as u64;
        let whole = Start { place: Place::start(0), first: 0, rows: Rows::Base };
        let (start, stop) = match task {
            Task::Nothing { .. } => return Ok(Cost::default()),
            Task::Whole => (&whole, None),
            Task::Branch { start, stop } => (start, *stop),
        };
        let rows = (length - start.first) as u64;
        let last = spec.layers - 1;
        let narrowed = match first_read(&tap, last)? {
            Some(read) => (length - start.first.max(read)) as u64,
            None => rows,
        };
        let mut work = Work::default();
        let layers = stop.map_or(spec.layers, |stop| stop.layer + 1);
        for layer in 0..layers {
            if start.place <= Place::start(layer) {
                work.attention += rows;
            }
            if start.place <= Place::middle(layer) && stop != Some(Place::middle(layer)) {
                work.mlp += if layer == last { narrowed } else { rows };
            }
        }
        let reads = self.end_rows(&tap)?.count(length) as u64;
        if stop.is_none() {
            work.unembedding += reads;
        }
        // What is alive at once for a row: the stream before and after, a norm, and the widest of what a half makes.
        let heads = ((spec.heads + 2 * spec.kv_heads) * spec.d_head + spec.heads * spec.d_head) as u64;
        let row = 4 * spec.d_model as u64 + heads.max(3 * spec.widest_mlp() as u64);
        let padded = rows.div_ceil(32) * 32;
        let own = 2 * padded * (spec.kv_heads * spec.d_head.div_ceil(32) * 32) as u64;
        let opened = (0..spec.layers).any(|layer| {
            let sites = &self.sites.layers[layer];
            ready.all.wants(sites.attn_scores) || ready.all.wants(sites.pattern)
        });
        let matrices = if opened { 3 * spec.heads as u64 * rows * length as u64 } else { 0 };
        // Each head's own copy of the stream, through its norm.
        let copies: usize = (0..spec.layers)
            .flat_map(|layer| self.sites.layers[layer].inputs())
            .filter(|&id| ready.all.wants(id))
            .map(|id| 4 * self.sites().get(id).fixed_size())
            .max()
            .unwrap_or(0);
        let captured: u64 =
            ready.all.captured_sites().into_iter().map(|id| 2 * rows * self.sites().get(id).fixed_size() as u64).sum();
        let delta = if matches!(start.rows, Rows::Plus(_)) { rows * spec.d_model as u64 } else { 0 };
        let logits = 2 * reads * (columns + spec.d_model as u64);
        Ok(Cost { work, bytes: 4 * (rows * (row + copies as u64) + own + matrices + captured + delta + logits) })
    }

    /// Runs branches that stop at the same layer.
    fn pass<'p>(
        &self,
        base: &Base,
        state: &State,
        ready: &'p [Ready],
        group: &[(usize, Start, Option<Place>)],
    ) -> Result<Vec<(usize, Run)>> {
        let tokens = tokens_of(&base.inputs)?;
        let stop = group.first().and_then(|(_, _, stop)| *stop);
        let layers = stop.map_or(self.spec.layers, |stop| stop.layer + 1);
        let empty = Tensor::zeros((0, self.spec.d_model), DType::F32, state.starts[0].device())?;
        let mut pass = Pass::new(self, Taps::default(), empty, Memory::Base(&state.keys_values));
        let mut order = Vec::with_capacity(group.len());
        let mut waiting = group.iter().peekable();
        let mut join = |pass: &mut Pass<'p, '_>, place: Place, stream: &Tensor| -> Result<()> {
            let (mut taps, mut streams) = (Vec::new(), Vec::new());
            while let Some((at, start, _)) = waiting.next_if(|(_, start, _)| start.place == place) {
                let (tap, rows) = self.joining(tokens, &ready[*at], start, stream)?;
                order.push(*at);
                taps.push(tap);
                streams.push(rows);
            }
            pass.join(taps, &streams)
        };
        for layer in 0..layers {
            join(&mut pass, Place::start(layer), &state.starts[layer])?;
            pass.attend(layer)?;
            join(&mut pass, Place::middle(layer), &state.middles[layer])?;
            pass.reach_middle(layer)?;
            if stop == Some(Place::middle(layer)) {
                break;
            }
            pass.transform(layer)?;
            join(&mut pass, Place::end(layer), &state.ends[layer])?;
            pass.reach_end(layer)?;
        }
        join(&mut pass, Place::start(self.spec.layers), &state.last)?;
        let runs = match stop {
            Some(_) => pass.finish_unread()?,
            None => pass.finish_over(&state.last)?,
        };
        Ok(order.into_iter().zip(runs).collect())
    }

    /// The tap and the rows that a branch joins with.
    fn joining<'p>(
        &self,
        tokens: &TokenRows,
        ready: &'p Ready,
        start: &Start,
        stream: &Tensor,
    ) -> Result<(Tap<'p>, Tensor)> {
        let length = tokens.length();
        let whole = Frame::whole(1, length);
        let mut tap = Tap::new(&ready.all, whole)?;
        let rows = length - start.first;
        let stream = match &start.rows {
            Rows::Embedded => {
                let mut taps = Taps::default();
                taps.push(tap);
                let embedded = self.embed(tokens.ids(), &mut taps)?;
                tap = Tap::new(&ready.all, whole)?;
                embedded.narrow(0, start.first, rows)?
            }
            Rows::Base => stream.narrow(0, start.first, rows)?,
            Rows::Plus(delta) => (stream.narrow(0, start.first, rows)? + delta)?,
        };
        tap.narrow(Frame { offset: start.first, length: rows, ..whole });
        Ok((tap, stream))
    }
}

fn nothing_read() -> Result<Tensor> {
    Ok(Tensor::zeros((1, 0, 0), DType::F32, &Device::Cpu)?)
}

impl Pass<'_, '_> {
    /// Ends a pass whose outputs nobody reads.
    fn finish_unread(self) -> Result<Vec<Run>> {
        let (taps, work) = (self.taps, self.work);
        taps.into_taps().zip(work).map(|(tap, work)| Ok(tap.finish(nothing_read()?, work))).collect()
    }

    /// Ends a pass of branches; `base` `[s, d]` has the rows of positions that a branch has not computed.
    fn finish_over(self, base: &Tensor) -> Result<Vec<Run>> {
        let decoder = self.decoder;
        self.finish_with(|mut tap, stream| {
            let frame = *tap.frame();
            tap.narrow(Frame { offset: 0, length: base.dim(0)?, ..frame });
            if decoder.end_rows(&tap)?.first() < frame.offset {
                return Ok(End { tap, stream: Tensor::cat(&[&base.narrow(0, 0, frame.offset)?, &stream], 0)? });
            }
            tap.narrow(frame);
            Ok(End { tap, stream })
        })
    }
}
