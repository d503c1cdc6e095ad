//! Adapters into the model: live or fused, and at each step with the weights of that step.

use super::{GenerateRequest, Pipeline, TextEncoders, parts};
use crate::{
    adapter::{
        Blend, BlendMode, Live, Strength, attach, fuse,
        guard::{BlendReport, Energies},
    },
    error::Result,
    models::UNet2DConditionModel,
};

/// From this many looks at a picture on, a blend is fused on the CPU. For SD 1.5 at 512 × 512 it pays from the second look
/// on, with ten adapters from the first (`cargo bench --bench adapter -- look`); smaller pictures make looks cheaper.
const LOOKS_WORTH_FUSING: usize = 8;

/// A picture to judge masks on, in latent pixels.
const REPORT_CANVAS: (usize, usize) = (64, 64);

/// What a blend has become in the model.
#[derive(Debug, Default)]
pub struct Applied {
    /// The stacked factors, kept while the blend is fused: strengths may change again.
    live: Option<Live>,
    fused: bool,
    /// What normalising needs to know of the adapters, once for all strengths.
    energies: Option<Energies>,
}

impl Pipeline {
    /// Applies adapters in place of those before. Live, with the same adapters as before, only the strengths are
    /// rewritten. Strengths that change over the steps or with the place are applied while a picture is drawn.
    ///
    /// # Errors
    /// If an adapter does not fit the model, or a blend that changes is to be fused.
    pub fn set_blend(&mut self, blend: Blend) -> Result<()> {
        blend.check_family(self.family)?;
        if blend.mode == BlendMode::Fused {
            blend.check_fixed()?;
        }
        self.text.set_bundled(&blend)?;
        let mut parts = parts(&mut self.unet, &mut self.text);
        let alike = self.blend.same_adapters(&blend);
        if !alike || !self.blend.same_regions(&blend) {
            self.applied.live = None;
        }
        if !alike {
            self.applied.energies = None;
        }
        if blend.normalize && self.applied.energies.is_none() {
            self.applied.energies = Some(Energies::of(&blend, &mut parts)?);
        }
        let fused = blend.mode == BlendMode::Fused;
        self.blend = blend;
        self.text.forget();
        if fused { self.fuse() } else { self.attach() }
    }

    fn attach(&mut self) -> Result<()> {
        let weighed = self.applied.weighed(&self.blend);
        let mut parts = parts(&mut self.unet, &mut self.text);
        if std::mem::take(&mut self.applied.fused) {
            fuse::unfuse(&mut parts)?;
        }
        match &mut self.applied.live {
            Some(live) => live.set_strengths(&mut parts, &weighed.strengths()),
            None => {
                self.applied.live = Some(Live::attach(&weighed, &mut parts)?);
                Ok(())
            }
        }
    }

    fn fuse(&mut self) -> Result<()> {
        let weighed = self.applied.weighed(&self.blend);
        let mut parts = parts(&mut self.unet, &mut self.text);
        attach::detach(&mut parts)?;
        self.applied.live.iter_mut().for_each(Live::forget);
        fuse::fuse(&weighed, &mut parts)?;
        self.applied.fused = true;
        Ok(())
    }

    /// The adapters in use.
    pub fn blend(&self) -> &Blend {
        &self.blend
    }

    /// Decides between live and fused for what is to be drawn, if the blend left it open, and says what it is. Live
    /// costs something at every look at a picture, fusing once. [`Pipeline::generate`] does it too.
    ///
    /// # Errors
    /// If the sum of base and adapters leaves the range of the base's dtype.
    pub fn settle_blend(&mut self, request: &GenerateRequest) -> Result<BlendMode> {
        let looks = request.steps_in_all() * request.count;
        let open = self.blend.mode == BlendMode::Auto && !self.applied.fused;
        // On other devices a look is bound by its kernels' number, and the weights would travel back and forth.
        let pays = looks >= LOOKS_WORTH_FUSING && self.device().is_cpu();
        if open && pays && self.blend.is_fixed() && !self.blend.is_base() {
            self.fuse()?;
        }
        Ok(if self.applied.fused { BlendMode::Fused } else { BlendMode::Live })
    }

    /// How much the blend changes each block at its strongest moment, and what is wrong with that.
    ///
    /// # Errors
    /// If an adapter does not fit the model.
    pub fn blend_report(&mut self) -> Result<BlendReport> {
        if self.applied.energies.is_none() {
            let mut parts = parts(&mut self.unet, &mut self.text);
            self.applied.energies = Some(Energies::of(&self.blend, &mut parts)?);
        }
        let strongest = self.blend.entries.iter().map(|e| e.strength.at_peak().on_canvas(REPORT_CANVAS));
        let strongest = strongest.collect::<Result<Vec<_>>>()?;
        let weighed = self.applied.normalized(strongest, self.blend.normalize);
        let energies = self.applied.energies.as_ref();
        Ok(energies.map(|energies| energies.report(&weighed)).unwrap_or_default())
    }

    /// The weights over a walk of `steps` on a picture of (h, w) latent pixels; `None` if nothing changes.
    pub(super) fn schedule_blend(&self, size: (usize, usize), steps: usize) -> Result<Option<Schedule>> {
        if self.blend.is_fixed() {
            return Ok(None);
        }
        let strengths = self.blend.entries.iter().map(|e| e.strength.on_canvas(size));
        Ok(Some(Schedule { strengths: strengths.collect::<Result<_>>()?, steps, now: None }))
    }
}

impl Applied {
    fn normalized(&self, strengths: Vec<Strength>, wanted: bool) -> Vec<Strength> {
        match &self.energies {
            Some(energies) if wanted => energies.normalize(&strengths),
            _ => strengths,
        }
    }

    /// The blend with the strengths that count in the end.
    fn weighed(&self, blend: &Blend) -> Blend {
        let strengths = self.normalized(blend.strengths(), blend.normalize);
        let mut weighed = blend.clone();
        weighed.entries.iter_mut().zip(strengths).for_each(|(entry, strength)| entry.strength = strength);
        weighed
    }
}

/// Strengths that change while a picture is drawn.
#[derive(Debug)]
pub(super) struct Schedule {
    strengths: Vec<Strength>,
    steps: usize,
    now: Option<Vec<Strength>>,
}

/// What a step has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    /// The prompts stay as they were encoded.
    Unet,
    Text,
}

impl Schedule {
    /// Applies the weights of a step, counted from 0.
    pub fn apply(
        &mut self,
        step: usize,
        (unet, text): (&mut UNet2DConditionModel, &mut TextEncoders),
        applied: &mut Applied,
        normalize: bool,
    ) -> Result<Changed> {
        let percent = if self.steps > 1 { 100.0 * step as f64 / (self.steps - 1) as f64 } else { 0.0 };
        let strengths: Vec<Strength> = self.strengths.iter().map(|s| s.at_percent(percent)).collect();
        if self.now.as_ref() == Some(&strengths) {
            return Ok(Changed::Nothing);
        }
        let same_text = self
            .now
            .as_ref()
            .is_some_and(|now| now.iter().zip(&strengths).all(|(a, b)| a.text_encoder() == b.text_encoder()));
        let weighed = applied.normalized(strengths.clone(), normalize);
        if let Some(live) = &mut applied.live {
            live.set_strengths(&mut parts(unet, text), &weighed)?;
        }
        self.now = Some(strengths);
        // Normalising may change the text encoders with the picture's weights.
        if same_text && !normalize {
            return Ok(Changed::Unet);
        }
        text.forget();
        Ok(Changed::Text)
    }
}
