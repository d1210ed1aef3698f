//! The decoder's sites: the table of names, shapes and order that a [`Spec`] implies.

use endoscope_net::{Axis, Role, Site, SiteId, Sites};

use crate::spec::{Mlp, Order, Positions, Spec};

/// The sites of a decoder with the ids that its forward pass hands to the tap.
#[derive(Debug, Clone)]
pub(crate) struct DecoderSites {
    pub sites: Sites,
    pub embed: SiteId,
    /// Present where positions are learned; otherwise never tapped.
    pub pos_embed: SiteId,
    pub layers: Vec<LayerSites>,
    pub ln_final: NormSites,
    pub logits: SiteId,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct NormSites {
    pub scale: SiteId,
    pub normalized: SiteId,
}

/// The ids of one layer; those of switches that are off are never tapped.
#[derive(Debug, Clone)]
pub(crate) struct LayerSites {
    pub resid_pre: SiteId,
    pub q_input: SiteId,
    pub k_input: SiteId,
    pub v_input: SiteId,
    pub ln1: NormSites,
    pub attn_in: SiteId,
    pub q: SiteId,
    pub k: SiteId,
    pub v: SiteId,
    pub rot_q: SiteId,
    pub rot_k: SiteId,
    pub attn_scores: SiteId,
    pub pattern: SiteId,
    pub z: SiteId,
    pub result: SiteId,
    pub attn_out_raw: SiteId,
    pub ln1_post: NormSites,
    pub attn_out: SiteId,
    pub resid_mid: SiteId,
    pub mlp_input: SiteId,
    pub ln2: NormSites,
    pub mlp_in: SiteId,
    pub pre: SiteId,
    pub pre_linear: SiteId,
    pub post: SiteId,
    pub router: SiteId,
    pub expert_weights: SiteId,
    pub expert_indices: SiteId,
    pub mlp_out_raw: SiteId,
    pub ln2_post: NormSites,
    pub mlp_out: SiteId,
    pub resid_post: SiteId,
}

/// Collects sites in the order of the mathematics.
struct Declare(Vec<Site>);

impl Declare {
    fn site(&mut self, name: String, layer: Option<usize>, role: Role, inner: &[Axis]) -> SiteId {
        let axes = [&[Axis::batch()], inner].concat();
        self.0.push(Site::new(name, layer, role, axes));
        SiteId(self.0.len() - 1)
    }

    fn norm(&mut self, prefix: &str, layer: Option<usize>, d_model: usize) -> NormSites {
        let axes = |size| [Axis::position(), Axis::dim(size)];
        NormSites {
            scale: self.site(format!("{prefix}.hook_scale"), layer, Role::Norm, &axes(1)),
            normalized: self.site(format!("{prefix}.hook_normalized"), layer, Role::Norm, &axes(d_model)),
        }
    }
}

impl DecoderSites {
    /// The table for `spec`.
    pub fn new(spec: &Spec) -> endoscope_net::Result<Self> {
        let mut declare = Declare(Vec::new());
        let stream = [Axis::position(), Axis::dim(spec.d_model)];
        let embed = declare.site("hook_embed".into(), None, Role::Embedding, &stream);
        let pos_embed = match spec.positions {
            Positions::Learned => declare.site("hook_pos_embed".into(), None, Role::Embedding, &stream),
            _ => NEVER,
        };
        let layers = (0..spec.layers).map(|layer| LayerSites::declare(&mut declare, spec, layer)).collect();
        let ln_final = declare.norm("ln_final", None, spec.d_model);
        let vocabulary = [Axis::position(), Axis::dim(spec.vocabulary)];
        let logits = declare.site("hook_logits".into(), None, Role::Output, &vocabulary);
        let sites = Sites::new(declare.0, spec.layers)?;
        Ok(Self { sites, embed, pos_embed, layers, ln_final, logits })
    }
}

/// The id of what is not there.
const NEVER: SiteId = SiteId(usize::MAX);

/// Collects the sites of one layer.
struct OfLayer<'a> {
    declare: &'a mut Declare,
    layer: usize,
}

impl OfLayer<'_> {
    fn site(&mut self, there: bool, name: &str, role: Role, inner: &[Axis]) -> SiteId {
        match there {
            true => self.declare.site(format!("blocks.{}.{name}", self.layer), Some(self.layer), role, inner),
            false => NEVER,
        }
    }

    fn norm(&mut self, there: bool, name: &str, d_model: usize) -> NormSites {
        match there {
            true => self.declare.norm(&format!("blocks.{}.{name}", self.layer), Some(self.layer), d_model),
            false => NormSites { scale: NEVER, normalized: NEVER },
        }
    }
}

impl LayerSites {
    fn declare(declare: &mut Declare, spec: &Spec, layer: usize) -> Self {
        let position = Axis::position();
        let stream = [position, Axis::dim(spec.d_model)];
        let heads = [position, Axis::head(spec.heads), Axis::dim(spec.d_head)];
        let kv_heads = [position, Axis::head(spec.kv_heads), Axis::dim(spec.d_head)];
        let results = [position, Axis::head(spec.heads), Axis::dim(spec.d_model)];
        let kv_inputs = [position, Axis::head(spec.kv_heads), Axis::dim(spec.d_model)];
        let matrix = [Axis::head(spec.heads), Axis::query(), Axis::key()];
        let neurons = [position, Axis::dim(spec.d_mlp)];
        let mut of_layer = OfLayer { declare, layer };
        let (before, after) = (spec.placement.before(), spec.placement.after());
        let rotary = spec.rotation(layer).is_some();
        let experts = spec.experts(layer);
        let (dense, gated) = (experts.is_none(), spec.mlp == Mlp::Gated);
        let (count, active) = experts.map_or((0, 0), |experts| (experts.count, experts.active));
        let probabilities = [position, Axis::dim(count)];
        let chosen = [position, Axis::dim(active)];
        // Fields are evaluated in the order they are written: that of the mathematics.
        Self {
            resid_pre: of_layer.site(true, "hook_resid_pre", Role::Residual, &stream),
            q_input: of_layer.site(true, "hook_q_input", Role::Residual, &results),
            k_input: of_layer.site(true, "hook_k_input", Role::Residual, &kv_inputs),
            v_input: of_layer.site(true, "hook_v_input", Role::Residual, &kv_inputs),
            ln1: of_layer.norm(before, "ln1", spec.d_model),
            attn_in: of_layer.site(true, "hook_attn_in", Role::Norm, &stream),
            q: of_layer.site(true, "attn.hook_q", Role::Attention, &heads),
            k: of_layer.site(true, "attn.hook_k", Role::Attention, &kv_heads),
            v: of_layer.site(true, "attn.hook_v", Role::Attention, &kv_heads),
            rot_q: of_layer.site(rotary, "attn.hook_rot_q", Role::Attention, &heads),
            rot_k: of_layer.site(rotary, "attn.hook_rot_k", Role::Attention, &kv_heads),
            attn_scores: of_layer.site(true, "attn.hook_attn_scores", Role::Attention, &matrix),
            pattern: of_layer.site(true, "attn.hook_pattern", Role::Attention, &matrix),
            z: of_layer.site(true, "attn.hook_z", Role::Attention, &heads),
            result: of_layer.site(true, "attn.hook_result", Role::Attention, &results),
            attn_out_raw: of_layer.site(true, "hook_attn_out_raw", Role::Write, &stream),
            ln1_post: of_layer.norm(after, "ln1_post", spec.d_model),
            attn_out: of_layer.site(true, "hook_attn_out", Role::Write, &stream),
            resid_mid: of_layer.site(spec.order == Order::Sequential, "hook_resid_mid", Role::Residual, &stream),
            mlp_input: of_layer.site(true, "hook_mlp_input", Role::Residual, &stream),
            ln2: of_layer.norm(before && spec.order != Order::ParallelSharedNorm, "ln2", spec.d_model),
            mlp_in: of_layer.site(true, "hook_mlp_in", Role::Norm, &stream),
            pre: of_layer.site(dense, "mlp.hook_pre", Role::Mlp, &neurons),
            pre_linear: of_layer.site(dense && gated, "mlp.hook_pre_linear", Role::Mlp, &neurons),
            post: of_layer.site(dense, "mlp.hook_post", Role::Mlp, &neurons),
            router: of_layer.site(!dense, "mlp.hook_gate", Role::Mlp, &probabilities),
            expert_weights: of_layer.site(!dense, "mlp.hook_expert_weights", Role::Mlp, &probabilities),
            expert_indices: of_layer.site(!dense, "mlp.hook_expert_indices", Role::Mlp, &chosen),
            mlp_out_raw: of_layer.site(true, "hook_mlp_out_raw", Role::Write, &stream),
            ln2_post: of_layer.norm(after, "ln2_post", spec.d_model),
            mlp_out: of_layer.site(true, "hook_mlp_out", Role::Write, &stream),
            resid_post: of_layer.site(true, "hook_resid_post", Role::Residual, &stream),
        }
    }
}
