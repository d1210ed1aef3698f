//! The tap: where a forward pass hands over each activation to be read or changed.

use candle_core::{DType, Tensor, Var};

use crate::canvas::{Canvas, gather};
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::joining::Joining;
use crate::network::{Captured, Probe, Probes, Run, Work};
use crate::prepared::{Actions, Outputs, Prepared};
use crate::selection::{Grid, Index};
use crate::site::{Site, SiteId};

/// One forward pass's view of a plan.
#[derive(Debug)]
pub struct Tap<'p> {
    plan: &'p Prepared<'p>,
    frame: Frame,
    captured: Vec<(SiteId, Tensor)>,
    probes: Vec<(String, Probe)>,
}

impl<'p> Tap<'p> {
    /// A tap for the part of the sequences that `frame` says.
    pub fn new(plan: &'p Prepared<'p>, frame: Frame) -> Result<Self> {
        for (&id, actions) in &plan.actions {
            for edit in &actions.edits {
                edit.check_frame(plan.sites.get(id), &frame).map_err(|error| frame.named(error))?;
            }
        }
        Ok(Self { plan, frame, captured: Vec::new(), probes: Vec::new() })
    }

    /// The part of the sequences being computed.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The same tap for the rest of a pass that goes on with fewer positions.
    pub fn narrow(&mut self, frame: Frame) {
        self.frame = frame;
    }

    /// What it does.
    pub fn plan(&self) -> &'p Prepared<'p> {
        self.plan
    }

    /// Whether this site is read or changed, so that its tensor must be built.
    pub fn wants(&self, id: SiteId) -> bool {
        self.plan.wants(id)
    }

    /// Whether [`Tap::at`] may return another tensor than it was given here: an edit, or a gradient to be read.
    pub fn rewrites(&self, id: SiteId) -> bool {
        let actions = self.plan.actions.get(&id);
        actions.is_some_and(|actions| !actions.edits.is_empty() || actions.capture.as_ref().is_some_and(|c| c.gradient))
    }

    /// Hands over the activation of a site; what comes back is what the rest of the network must read.
    ///
    /// A site without actions costs one look-up and returns the same tensor.
    pub fn at(&mut self, id: SiteId, activation: Tensor) -> Result<Tensor> {
        let Some(actions) = self.plan.actions.get(&id) else { return Ok(activation) };
        let site = self.plan.sites.get(id);
        let named = |error| self.frame.named(error);
        let mut activation = self.edited(site, actions, activation).map_err(named)?;
        if let Some(capture) = &actions.capture {
            let grid = capture.select.grid(site, &self.frame, activation.dims()).map_err(named)?;
            if capture.gradient {
                let zero = Var::zeros(activation.shape(), DType::F32, activation.device())?;
                activation = (activation + zero.as_tensor())?;
                self.probes.push((site.name.clone(), Probe { zero, grid: grid.clone() }));
            }
            self.captured.push((id, gather(&activation, &grid)?));
        }
        Ok(activation)
    }

    pub(crate) fn edited(&self, site: &Site, actions: &Actions, activation: Tensor) -> Result<Tensor> {
        if actions.edits.is_empty() {
            return Ok(activation);
        }
        let dims = activation.dims().to_vec();
        let mut canvas: Option<Canvas> = None;
        let keep_graph = actions.edits.iter().any(|edit| edit.has_graph());
        for edit in &actions.edits {
            let grid = edit.select.grid(site, &self.frame, &dims)?;
            if grid.is_empty() {
                continue;
            }
            let canvas = match &mut canvas {
                Some(canvas) => canvas,
                none => none.insert(Canvas::new(activation.clone(), keep_graph)?),
            };
            let cells = edit.apply(site, &canvas.read(&grid)?, &grid, &self.frame)?;
            canvas.write(&grid, cells)?;
        }
        let Some(canvas) = canvas else { return Ok(activation) };
        let edited = canvas.finish()?;
        check_attention(site, &edited)?;
        Ok(edited)
    }

    /// The positions (of those computed now) whose outputs the plan reads; none = all.
    pub fn output_positions(&self) -> Result<Option<Vec<usize>>> {
        let index = match &self.plan.outputs {
            Outputs::LastComputed => return Ok(Some(vec![self.frame.length - 1])),
            Outputs::At(Index::All) => return Ok(None),
            Outputs::At(index) => index.clone(),
        };
        let outputs = Site::new("outputs", None, crate::Role::Output, vec![crate::Axis::position()]);
        let select = crate::Selection::default().with(crate::AxisName::Position, index);
        let Grid { mut axes, .. } =
            select.grid(&outputs, &self.frame, &[self.frame.length]).map_err(|error| self.frame.named(error))?;
        Ok(axes.remove(0))
    }

    /// The entries of the outputs' last axis, of `size` entries, that the plan reads; none = all.
    pub fn output_columns(&self, size: usize) -> Result<Option<Vec<usize>>> {
        let outputs = Site::new("outputs", None, crate::Role::Output, vec![crate::Axis::dim(size)]);
        let select = crate::Selection::default().with(crate::AxisName::Dim, self.plan.columns.clone());
        let Grid { mut axes, .. } = select.grid(&outputs, &self.frame, &[size])?;
        Ok(axes.remove(0))
    }

    /// Ends the pass, which computed `work`.
    pub fn finish(self, outputs: Tensor, work: Work) -> Run {
        // A network may compute sites that do not depend on each other in any order.
        let mut entries = self.captured;
        entries.sort_by_key(|(id, _)| id.0);
        let mut captured = Captured::default();
        for (id, activation) in entries {
            captured.insert(self.plan.sites.get(id).name.clone(), activation);
        }
        let probes = self.probes.into_iter();
        let probes = probes.map(|(site, probe)| Probes { site, pieces: vec![probe], joining: Joining::default() });
        Run { outputs, captured, work, probes: probes.collect() }
    }
}

/// A softmax over nothing is NaN: say so where it happens.
fn check_attention(site: &Site, edited: &Tensor) -> Result<()> {
    if !site.name.ends_with("hook_attn_scores") {
        return Ok(());
    }
    let largest = edited.detach().max(candle_core::D::Minus1)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    match largest.iter().position(|&score| score == f32::NEG_INFINITY) {
        None => Ok(()),
        Some(row) => {
            let (heads, queries) = (edited.dim(1)?, edited.dim(2)?);
            let reason =
                format!("it leaves query {} of head {} no key to attend to", row % queries, row / queries % heads);
            Err(Error::EditNotPossible { site: site.name.clone(), reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use candle_core::Device;

    /// Runs a plan over one site of shape [1, 3, 4] holding 0..12.
    fn run(plan: &Plan) -> Result<(Tensor, Run)> {
        let site =
            Site::new("blocks.0.hook_x", Some(0), Role::Residual, vec![Axis::batch(), Axis::position(), Axis::dim(4)]);
        let sites = Sites::new(vec![site], 1)?;
        let prepared = Prepared::new(&sites, plan)?;
        let mut tap = Tap::new(&prepared, Frame::whole(1, 3))?;
        let activation = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((1, 3, 4))?;
        let output = tap.at(SiteId(0), activation)?;
        Ok((output.clone(), tap.finish(output, Work::default())))
    }

    fn check(edit: Edit, expected: [f32; 12]) {
        let (output, _) = run(&Plan::default().edit(edit.clone())).unwrap();
        assert_eq!(output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected, "{edit:?}");
    }

    fn array(data: &[f32], shape: &[usize]) -> Value {
        Tensor::from_slice(data, shape, &Device::Cpu).unwrap().into()
    }

    #[test]
    fn each_change_does_what_it_says() {
        let at = |change| Edit::new("x.0", change).at(AxisName::Position, Index::At(-1));
        let other: Vec<f32> = (100..112).map(|i| i as f32).collect();
        let other = || array(&other, &[1, 3, 4]);
        check(at(Change::Zero), [0., 1., 2., 3., 4., 5., 6., 7., 0., 0., 0., 0.]);
        check(
            at(Change::Set { value: array(&[1., 2., 3., 4.], &[4]) }),
            [0., 1., 2., 3., 4., 5., 6., 7., 1., 2., 3., 4.],
        );
        check(at(Change::Add { value: 1.0.into(), scale: 2. }), [0., 1., 2., 3., 4., 5., 6., 7., 10., 11., 12., 13.]);
        check(at(Change::Scale { factor: 2. }), [0., 1., 2., 3., 4., 5., 6., 7., 16., 18., 20., 22.]);
        check(at(Change::Patch { source: other() }), [0., 1., 2., 3., 4., 5., 6., 7., 108., 109., 110., 111.]);
        check(
            at(Change::Interpolate { source: other(), mask: array(&[0., 1., 0.5, 0.], &[4]), along: None }),
            [0., 1., 2., 3., 4., 5., 6., 7., 8., 109., 60., 11.],
        );
        // Source less cells is 100 in every dim; the second direction takes half of it.
        let along = || Some(array(&[0.6, 0., 0.8, 0., 0., 1., 0., 0.], &[2, 4]));
        check(
            at(Change::Interpolate { source: other(), mask: array(&[1., 0.5], &[2]), along: along() }),
            [0., 1., 2., 3., 4., 5., 6., 7., 92., 59., 122., 11.],
        );
        check(at(Change::Mean { over: vec![AxisName::Dim] }), [0., 1., 2., 3., 4., 5., 6., 7., 9.5, 9.5, 9.5, 9.5]);
        let directions = || array(&[2., 0., 0., 0., 1., 3., 0., 0.], &[2, 4]);
        check(at(Change::ProjectOnto { directions: directions() }), [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 0., 0.]);
        check(at(Change::ProjectOut { directions: directions() }), [0., 1., 2., 3., 4., 5., 6., 7., 0., 0., 10., 11.]);
        let dims = Edit::new("x.0", Change::Zero).at(AxisName::Dim, Index::List(vec![0, 3]));
        check(dims, [0., 1., 2., 0., 0., 5., 6., 0., 0., 9., 10., 0.]);
    }

    #[test]
    fn an_array_over_all_positions_is_read_at_those_that_are_computed() {
        let axes = vec![Axis::batch(), Axis::position(), Axis::dim(2)];
        let sites = Sites::new(vec![Site::new("x", None, Role::Residual, axes)], 1).unwrap();
        let ask = |value: Value, offset: usize| {
            let plan = Plan::default().edit(Edit::new("x", Change::Add { value, scale: 1. }));
            let prepared = Prepared::new(&sites, &plan).unwrap();
            let frame = Frame { offset, length: 1, ..Frame::whole(1, 3) };
            let mut tap = Tap::new(&prepared, frame).unwrap();
            let zeros = Tensor::zeros((1, 1, 2), DType::F32, &Device::Cpu).unwrap();
            tap.at(SiteId(0), zeros).map(|edited| edited.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let each = || array(&[1., 2., 3.], &[3, 1]);
        for offset in 0..3 {
            assert_eq!(ask(each(), offset).unwrap(), [offset as f32 + 1.; 2]);
        }
        assert!(matches!(ask(each(), 3), Err(Error::ValueShape { .. })), "beyond its positions it has no value");
        assert!(
            matches!(ask(array(&[1., 2.], &[2, 1]), 1), Err(Error::ValueShape { .. })),
            "it is no array over them all"
        );
    }

    #[test]
    fn edits_are_made_in_order_and_captures_see_them() {
        let plan = Plan::default()
            .capture(Capture::new("x").at(AxisName::Dim, Index::At(1)))
            .edit(Edit::new("x", Change::Zero))
            .edit(Edit::new("x", Change::Add { value: 3.0.into(), scale: 1. }));
        let (_, run) = run(&plan).unwrap();
        let captured = run.captured.get("blocks.0.hook_x").unwrap();
        assert_eq!(captured.dims(), [1, 3, 1]);
        assert_eq!(captured.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [3., 3., 3.]);
    }

    #[test]
    fn no_action_returns_the_same_storage() {
        let sites = Sites::new(vec![Site::new("x", None, Role::Residual, vec![Axis::batch()])], 0).unwrap();
        let plan = Plan::default();
        let prepared = Prepared::new(&sites, &plan).unwrap();
        let mut tap = Tap::new(&prepared, Frame::whole(1, 1)).unwrap();
        let activation = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let id = activation.id();
        assert_eq!(tap.at(SiteId(0), activation).unwrap().id(), id);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_the_run() {
        let zero = || Edit::new("x.0", Change::Zero);
        let along = |mask: Value, rows: &[f32], shape: &[usize]| {
            let rows = array(&rows[..shape.iter().product()], shape);
            Edit::new("x.0", Change::Interpolate { source: array(&[0.; 12], &[1, 3, 4]), mask, along: Some(rows) })
        };
        for (edit, part) in [
            (zero().at(AxisName::Head, Index::At(0)), "no axis `head`"),
            (zero().at(AxisName::Dim, Index::At(4)), "out of range"),
            (zero().at(AxisName::Dim, Index::List(vec![0, 0])), "twice"),
            (Edit::new("y.0", Change::Zero), "unknown site"),
            (Edit::new("x.1", Change::Zero), "layer 1"),
            (Edit::new("x.0", Change::Set { value: array(&[1., 2.], &[2]) }), "does not fit"),
            (Edit::new("x.0", Change::Patch { source: array(&[1.; 4], &[4]) }), "does not fit"),
            (Edit::new("x.0", Change::Set { value: f64::NAN.into() }), "NaN"),
            (Edit::new("x.0", Change::Scale { factor: f64::INFINITY }), "NaN or an infinity"),
            (Edit::new("x.0", Change::KnockOut), "knocked out"),
            (Edit::new("x.0", Change::ProjectOnto { directions: array(&[0.; 4], &[4]) }), "zero"),
            (along(array(&[1.; 2], &[2]), &[1., 0., 0., 0., 0., 1., 0., 0.], &[2, 3]), "does not fit"),
            (along(array(&[1.; 3], &[3]), &[1., 0., 0., 0., 0., 1., 0., 0.], &[2, 4]), "does not fit"),
            (along(1.0.into(), &[1., 1., 0., 0., 0., 1., 0., 0.], &[2, 4]), "orthonormal"),
            (along(1.0.into(), &[1., 0., 0., 0., 0., 1., 0., f32::NAN], &[2, 4]), "NaN"),
        ] {
            let error = run(&Plan::default().edit(edit.clone())).unwrap_err().to_string();
            assert!(error.contains(part), "{edit:?}: {error}");
        }
        let twice =
            Plan::default().capture(Capture::new("x")).capture(Capture::new("x").at(AxisName::Dim, Index::At(0)));
        assert!(matches!(run(&twice).unwrap_err(), Error::CapturedTwice(_)));
    }

    #[test]
    fn gradient_of_a_capture() {
        let plan = Plan::default().capture(Capture::new("x").at(AxisName::Position, Index::At(1)).with_gradient());
        let (output, run) = run(&plan).unwrap();
        let gradients = run.gradients(&output.sqr().unwrap().sum_all().unwrap()).unwrap();
        assert_eq!(
            gradients.get("blocks.0.hook_x").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [8., 10., 12., 14.]
        );
    }
}
