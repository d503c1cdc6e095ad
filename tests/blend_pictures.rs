//! Blending on the embedded model: live and fused draw the same, weights follow the steps and the place, and nothing of
//! it stays behind.

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, Luma};
use scumble::{
    Result,
    adapter::{Adapter, Blend, BlendMode, Delta, LoadOptions, LowRank, Strength, strength::Mask},
    nn::{LayerPath, Part},
    pipeline::{GenerateRequest, Generated, Pipeline},
    progress::CancelToken,
    random::{Rng, Stream},
    weights::Checkpoint,
};

/// With fused weights the sum is rounded before the product, with branches after: f32's last digits, through the
/// whole walk.
const TOLERANCE: f32 = 1e-3;

struct Studio {
    pipeline: Pipeline,
    riso: Arc<Adapter>,
    blueprint: Arc<Adapter>,
    request: GenerateRequest,
}

impl Studio {
    fn new() -> Result<Self> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data");
        let checkpoint = Checkpoint::open_folder(data.join("mini"), None)?;
        let mut pipeline = Pipeline::load(&checkpoint, &Device::Cpu, DType::F32)?;
        let mut load = |name: &str| {
            pipeline.load_adapter(data.join(format!("adapters/{name}.safetensors")), &LoadOptions::default())
        };
        let (riso, blueprint) = (load("riso")?, load("blueprint")?);
        let request = GenerateRequest {
            size_px: Some((64, 64)),
            steps: 4,
            seed: 7,
            ..GenerateRequest::new("cat, flat icon")
        };
        Ok(Self { pipeline, riso, blueprint, request })
    }

    fn blend(&self, riso: &str, blueprint: &str) -> Result<Blend> {
        let blend = Blend::new().with("riso", self.riso.clone(), riso.parse()?);
        Ok(blend.with("blueprint", self.blueprint.clone(), blueprint.parse()?))
    }

    fn draw(&mut self, blend: Blend) -> Result<Generated> {
        self.pipeline.set_blend(blend)?;
        Ok(self.pipeline.generate(&self.request, &mut (), &CancelToken::default())?.remove(0))
    }
}

fn values(picture: &Generated) -> Result<Vec<f32>> {
    Ok(picture.latents.flatten_all()?.to_vec1()?)
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f32> {
    let norm = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt()) };
    Ok(norm(&(a - b)?)? / norm(b)?)
}

#[test]
fn live_and_fused_draw_the_same_and_leave_nothing() -> Result<()> {
    let mut studio = Studio::new()?;
    let base = values(&studio.draw(Blend::new())?)?;
    for (words, normalize) in [(["0.7", "-0.3"], false), (["unet=1.2,te=0.5,down.0=0.5", "0.8,mid=0"], true)]
    {
        let blend = Blend { normalize, ..studio.blend(words[0], words[1])? };
        let live = studio.draw(Blend { mode: BlendMode::Live, ..blend.clone() })?;
        let fused = studio.draw(Blend { mode: BlendMode::Fused, ..blend })?;
        let error = relative(&live.latents, &fused.latents)?;
        assert!(error < TOLERANCE, "{words:?}: live and fused differ by {error:e}");
        assert!(values(&live)? != base, "the adapters must matter");
    }
    for mode in [BlendMode::Fused, BlendMode::Live] {
        let none = Blend { mode, ..studio.blend("0", "unet=0,te=0,mid=2")? };
        assert_eq!(values(&studio.draw(none)?)?, base, "{mode}: weight 0 is the base, bit for bit");
    }
    Ok(())
}

#[test]
fn weights_follow_the_steps() -> Result<()> {
    let mut studio = Studio::new()?;
    let mut draw = |riso: &str| -> Result<Vec<f32>> {
        let blend = Blend { mode: BlendMode::Live, ..studio.blend(riso, "0.2")? };
        values(&studio.draw(blend)?)
    };
    let (off, on) = (draw("0")?, draw("1")?);
    // A curve that never moves is its value, whatever was drawn in between.
    assert_eq!(draw("1..1@0-100%")?, on);
    let ramp = draw("0..1@0-50%")?;
    assert!(ramp != on && ramp != off);
    assert_eq!(draw("0..0@20-80%")?, off);
    assert_eq!(draw("0..1@0-50%")?, ramp);
    // Four steps are at 0, 33, 67 and 100 %: both say first half on, second half off.
    assert_eq!(draw("1@0-50%")?, draw("1..1..0..0@0-40-60-100%")?);
    // The text encoder follows too.
    let adapter = on_text()?;
    let mut draw = |words: &str| -> Result<Vec<f32>> {
        values(&studio.draw(Blend::new().with("text", adapter.clone(), words.parse()?))?)
    };
    let half = draw("te=1@0-50%")?;
    assert!(half != draw("te=0")? && half != draw("te=1")?);
    Ok(())
}

/// An adapter on one layer of the text encoder.
fn on_text() -> Result<Arc<Adapter>> {
    let mut rng = Rng::new(1, Stream::Weights, 0);
    let (down, up) = (rng.normal((4, 128), &Device::Cpu)?, rng.normal((128, 4), &Device::Cpu)?);
    let name = "text_model.encoder.layers.0.self_attn.v_proj".to_owned();
    let delta = Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(1.0) });
    let layers = [(LayerPath { part: Part::TextEncoder, name }, delta)].into();
    Ok(Arc::new(Adapter { layers, ..Adapter::default() }))
}

#[test]
fn regions_change_their_side_of_the_picture() -> Result<()> {
    let mut studio = Studio::new()?;
    // Natural size, or there is nothing to keep on the other side.
    studio.request = GenerateRequest {
        size_px: None,
        steps: 6,
        ..GenerateRequest::new("cat, flat icon, white background")
    };
    studio.request.cfg_scale = Some(1.0);
    let base = studio.draw(Blend::new())?;
    // Mean change of the left and the right half.
    let change = |picture: &Generated| {
        let mut sums = [0f64; 2];
        for (x, y, pixel) in picture.image.enumerate_pixels() {
            let before = base.image.get_pixel(x, y);
            let side = usize::from(x >= picture.image.width() / 2);
            sums[side] += (0..3).map(|c| f64::from(pixel[c].abs_diff(before[c]))).sum::<f64>();
        }
        sums
    };
    let riso = studio.riso.clone();
    let mut draw = |strength: Strength| studio.draw(Blend::new().with("riso", riso.clone(), strength));
    let left = draw("1@left".parse()?)?;
    let [near, far] = change(&left);
    assert!(near > 1.3 * far && far > 0.0, "left half changed by {near}, right by {far}");

    // A mask's picture means the same as the word; the other half is the mirror image.
    let mask = Arc::new(GrayImage::from_fn(64, 32, |x, _| Luma([if x < 32 { 255 } else { 0 }])));
    let mut masked: Strength = "1@mask=m.png".parse()?;
    masked.read_mask(&mut |path| Ok(Mask { path: path.to_path_buf(), picture: mask.clone() }))?;
    let error = relative(&draw(masked)?.latents, &left.latents)?;
    assert!(error < 0.3, "a mask of the left half differs from `left` by {error}");
    let [far, near] = change(&draw("1@right".parse()?)?);
    assert!(near > 1.3 * far, "right half changed by {near}, left by {far}");
    assert!(studio.draw(Blend { mode: BlendMode::Fused, ..studio.blend("1@left", "1")? }).is_err());
    Ok(())
}
