//! The decoder's sites: the table of names, shapes and order that a [`Spec`] implies.

use endoscope_net::{Axis, Role, Site, SiteId, Sites};

use crate::spec::{Mlp, Positions, Spec};

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
    pub attn_out: SiteId,
    pub resid_mid: SiteId,
    pub ln2: NormSites,
    pub mlp_in: SiteId,
    pub pre: SiteId,
    pub pre_linear: SiteId,
    pub post: SiteId,
    pub mlp_out_raw: SiteId,
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
        let never = SiteId(usize::MAX);
        let embed = declare.site("hook_embed".into(), None, Role::Embedding, &stream);
        let pos_embed = match spec.positions {
            Positions::Learned => declare.site("hook_pos_embed".into(), None, Role::Embedding, &stream),
            Positions::Rotary { .. } => never,
        };
        let layers = (0..spec.layers).map(|layer| LayerSites::declare(&mut declare, spec, layer)).collect();
        let ln_final = declare.norm("ln_final", None, spec.d_model);
        let vocabulary = [Axis::position(), Axis::dim(spec.vocabulary)];
        let logits = declare.site("hook_logits".into(), None, Role::Output, &vocabulary);
        let sites = Sites::new(declare.0, spec.layers)?;
        Ok(Self { sites, embed, pos_embed, layers, ln_final, logits })
    }
}

impl LayerSites {
    fn declare(declare: &mut Declare, spec: &Spec, layer: usize) -> Self {
        let position = Axis::position();
        let stream = [position, Axis::dim(spec.d_model)];
        let heads = [position, Axis::head(spec.heads), Axis::dim(spec.d_head)];
        let kv_heads = [position, Axis::head(spec.kv_heads), Axis::dim(spec.d_head)];
        let results = [position, Axis::head(spec.heads), Axis::dim(spec.d_model)];
        let matrix = [Axis::head(spec.heads), Axis::query(), Axis::key()];
        let neurons = [position, Axis::dim(spec.d_mlp)];
        let never = SiteId(usize::MAX);
        let rotary = matches!(spec.positions, Positions::Rotary { .. });
        let gated = spec.mlp == Mlp::Gated;
        let mut site =
            |name: &str, role, axes: &[Axis]| declare.site(format!("blocks.{layer}.{name}"), Some(layer), role, axes);

        let resid_pre = site("hook_resid_pre", Role::Residual, &stream);
        let ln1 = declare.norm(&format!("blocks.{layer}.ln1"), Some(layer), spec.d_model);
        let mut site =
            |name: &str, role, axes: &[Axis]| declare.site(format!("blocks.{layer}.{name}"), Some(layer), role, axes);
        let attn_in = site("hook_attn_in", Role::Norm, &stream);
        let q = site("attn.hook_q", Role::Attention, &heads);
        let k = site("attn.hook_k", Role::Attention, &kv_heads);
        let v = site("attn.hook_v", Role::Attention, &kv_heads);
        let rot_q = if rotary { site("attn.hook_rot_q", Role::Attention, &heads) } else { never };
        let rot_k = if rotary { site("attn.hook_rot_k", Role::Attention, &kv_heads) } else { never };
        let attn_scores = site("attn.hook_attn_scores", Role::Attention, &matrix);
        let pattern = site("attn.hook_pattern", Role::Attention, &matrix);
        let z = site("attn.hook_z", Role::Attention, &heads);
        let result = site("attn.hook_result", Role::Attention, &results);
        let attn_out_raw = site("hook_attn_out_raw", Role::Write, &stream);
        let attn_out = site("hook_attn_out", Role::Write, &stream);
        let resid_mid = site("hook_resid_mid", Role::Residual, &stream);
        let ln2 = declare.norm(&format!("blocks.{layer}.ln2"), Some(layer), spec.d_model);
        let mut site =
            |name: &str, role, axes: &[Axis]| declare.site(format!("blocks.{layer}.{name}"), Some(layer), role, axes);
        let mlp_in = site("hook_mlp_in", Role::Norm, &stream);
        let pre = site("mlp.hook_pre", Role::Mlp, &neurons);
        let pre_linear = if gated { site("mlp.hook_pre_linear", Role::Mlp, &neurons) } else { never };
        let post = site("mlp.hook_post", Role::Mlp, &neurons);
        let mlp_out_raw = site("hook_mlp_out_raw", Role::Write, &stream);
        let mlp_out = site("hook_mlp_out", Role::Write, &stream);
        let resid_post = site("hook_resid_post", Role::Residual, &stream);
        Self {
            resid_pre,
            ln1,
            attn_in,
            q,
            k,
            v,
            rot_q,
            rot_k,
            attn_scores,
            pattern,
            z,
            result,
            attn_out_raw,
            attn_out,
            resid_mid,
            ln2,
            mlp_in,
            pre,
            pre_linear,
            post,
            mlp_out_raw,
            mlp_out,
            resid_post,
        }
    }
}
