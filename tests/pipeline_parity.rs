//! Whole pictures against diffusers: tiny random models of three shapes, the same noise, DDIM for 20 steps, with and
//! without an adapter. `tests/golden/pipeline/make_golden.py` drew the expectations.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{Blend, LoadOptions, Strength, fuse},
    diffusion::{Sampler, SigmaSchedule},
    pipeline::{GenerateRequest, Generated, Hires, InitImage, Pipeline},
    progress::{CancelToken, Event},
    weights::{Checkpoint, Family},
};

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline").join(family)
}

fn pipeline(family: &str) -> Result<Pipeline> {
    Pipeline::load(&Checkpoint::open_folder(folder(family), None)?, &Device::Cpu, DType::F32)
}

fn request() -> GenerateRequest {
    GenerateRequest {
        negative: "blurry, dark".into(),
        steps: 20,
        sampler: Sampler::Ddim,
        schedule: SigmaSchedule::Normal,
        cfg_scale: Some(5.0),
        ..GenerateRequest::new("a red house on a hill, at dawn")
    }
}

fn expected(family: &str) -> Result<HashMap<String, Tensor>> {
    let all = candle_core::safetensors::load(folder(family).join("expected.safetensors"), &Device::Cpu)?;
    // diffusers' (b, c, h, w)
    all.into_iter().map(|(name, t)| Ok((name, t.permute((0, 2, 3, 1))?.contiguous()?))).collect()
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f32> {
    let max = |t: &Tensor| -> Result<f32> { Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?) };
    Ok(max(&(a - b)?)? / max(b)?)
}

fn psnr(picture: &image::RgbImage, expected: &Tensor) -> Result<f64> {
    let expected: Vec<f32> = expected.flatten_all()?.to_vec1()?;
    let squares =
        picture.as_raw().iter().zip(&expected).map(|(a, b)| (f64::from(*a) / 255.0 - f64::from(*b)).powi(2));
    Ok(-10.0 * (squares.sum::<f64>() / expected.len() as f64).log10())
}

#[test]
fn pictures_equal_diffusers() -> Result<()> {
    for (family, found) in [("sd1", Family::Mini), ("sd2", Family::Mini), ("sdxl", Family::Sdxl)] {
        let mut pipeline = pipeline(family)?;
        assert_eq!(pipeline.family, found);
        let expected = expected(family)?;
        let request = GenerateRequest { noise: Some(expected["noise"].clone()), ..request() };
        let draw = |pipeline: &mut Pipeline, steps: usize| -> Result<_> {
            let request = GenerateRequest { steps, ..request.clone() };
            Ok(pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0))
        };
        let quick = draw(&mut pipeline, 2)?;
        let base = draw(&mut pipeline, 20)?;
        let (error, psnr) =
            (relative(&base.latents, &expected["latents"])?, psnr(&base.image, &expected["picture"])?);
        assert!(error < 1e-3 && psnr > 45.0, "{family}: latents differ by {error:e}, PSNR {psnr:.1} dB");

        let adapter =
            pipeline.load_adapter(folder(family).join("adapter.safetensors"), &LoadOptions::default())?;
        pipeline.set_blend(Blend::new().with("adapter", adapter.clone(), Strength::default()))?;
        let adapted = draw(&mut pipeline, 20)?;
        let error = relative(&adapted.latents, &expected["adapted_latents"])?;
        assert!(error < 1e-3, "{family}: adapted latents differ by {error:e}");

        pipeline.set_blend(Blend::new().with("adapter", adapter, Strength::uniform(0.0)))?;
        let again = draw(&mut pipeline, 2)?;
        let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        assert_eq!(
            values(&again.latents)?,
            values(&quick.latents)?,
            "{family}: weight 0 must be the base, bit for bit"
        );
    }
    Ok(())
}

/// Attention, feed-forward, convolutions and text encoders at once, at a strength that is not 1.
#[test]
fn fused_equals_live() -> Result<()> {
    let mut pipeline = pipeline("sd1")?;
    let request = GenerateRequest { steps: 2, ..request() };
    let draw = |pipeline: &mut Pipeline| -> Result<Tensor> {
        Ok(pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0).latents)
    };
    let base = draw(&mut pipeline)?;
    let adapter =
        pipeline.load_adapter(folder("sd1").join("adapter.safetensors"), &LoadOptions::default())?;
    let blend = Blend::new().with("adapter", adapter, Strength::split(0.8, -0.5));
    pipeline.set_blend(blend.clone())?;
    let live = draw(&mut pipeline)?;
    pipeline.set_blend(Blend::new())?;
    fuse::fuse(&blend, &mut pipeline.parts())?;
    pipeline.text.forget();
    let fused = draw(&mut pipeline)?;
    fuse::unfuse(&mut pipeline.parts())?;
    pipeline.text.forget();
    let (error, change) = (relative(&live, &fused)?, relative(&live, &base)?);
    // Two orders of summation, through two steps with guidance.
    assert!(error < 3e-5 && change > 0.01, "they differ by {error:e}, from the base by {change:e}");
    assert_eq!(relative(&draw(&mut pipeline)?, &base)?, 0.0);
    Ok(())
}

#[test]
fn a_picture_depends_on_its_own_seed_only() -> Result<()> {
    let mut pipeline = pipeline("sd1")?;
    let request = GenerateRequest { steps: 3, sampler: Sampler::EulerA, seed: 10, ..request() };
    let mut draw = |request: &GenerateRequest| pipeline.generate(request, &mut (), &CancelToken::default());
    let three = draw(&GenerateRequest { count: 3, batch: 2, ..request.clone() })?;
    assert_eq!(three.iter().map(|p| p.seed).collect::<Vec<_>>(), [10, 11, 12]);
    for picture in &three {
        let alone = draw(&GenerateRequest { seed: picture.seed, ..request.clone() })?.remove(0);
        assert!(relative(&alone.latents, &picture.latents)? < 1e-4);
    }
    assert_ne!(three[0].image, three[1].image);
    assert!(
        draw(&GenerateRequest { size_px: Some((50, 32)), ..request.clone() })
            .is_err_and(|e| e.hint().is_some())
    );
    let wide = draw(&GenerateRequest { size_px: Some((48, 16)), ..request })?.remove(0);
    assert_eq!(wide.image.dimensions(), (48, 16));
    Ok(())
}

#[test]
fn img2img_keeps_or_redraws() -> Result<()> {
    let mut pipeline = pipeline("sd1")?;
    let pixels = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 8, y as u8 * 8, 128]));
    let start = pipeline.encode_picture(&pixels)?;
    let mut draw = |strength: f64| -> Result<Tensor> {
        let init = Some(InitImage::new(pixels.clone(), strength));
        let request = GenerateRequest { init, steps: 8, ..request() };
        Ok(pipeline.generate(&request, &mut (), &CancelToken::default())?.remove(0).latents)
    };
    assert_eq!(relative(&draw(0.0)?, &start)?, 0.0);
    let (little, much) = (relative(&draw(0.25)?, &start)?, relative(&draw(1.0)?, &start)?);
    assert!(0.0 < little && little < much, "{little} {much}");
    assert!(draw(1.5).is_err());
    Ok(())
}

/// Pictures, and how the steps were counted: done, of.
type Counted = (Vec<Generated>, Vec<(u64, u64)>);

#[test]
fn a_second_pass_is_img2img_of_the_first_picture() -> Result<()> {
    let mut pipeline = pipeline("sd1")?;
    let first =
        GenerateRequest { steps: 4, count: 3, batch: 2, seed: 10, sampler: Sampler::EulerA, ..request() };
    let mut draw = |request: &GenerateRequest| -> Result<Counted> {
        let mut steps = Vec::new();
        let mut observer = |event: &Event<'_>| {
            if let Event::Advanced { done, total, .. } = event {
                steps.push((*done, *total));
            }
        };
        Ok((pipeline.generate(request, &mut observer, &CancelToken::default())?, steps))
    };
    let (ones, _) = draw(&first)?;
    for scale in [1.0, 1.5] {
        let hires = Hires { scale, strength: 0.5, steps: Some(6) };
        let (twos, steps) = draw(&GenerateRequest { hires: Some(hires), ..first.clone() })?;
        assert_eq!(
            steps,
            (1..=26).map(|done| (done, 26)).collect::<Vec<_>>(),
            "2 batches of 4, 3 pictures of 6"
        );
        for (one, two) in ones.iter().zip(&twos) {
            let side = (32.0 * scale) as usize;
            let alone = GenerateRequest {
                init: Some(InitImage::new(one.image.clone(), 0.5)),
                size_px: Some((side, side)),
                seed: one.seed,
                steps: 12,
                count: 1,
                ..first.clone()
            };
            assert_eq!((two.seed, &two.image), (one.seed, &draw(&alone)?.0[0].image));
        }
    }
    let init = Some(InitImage::new(ones[0].image.clone(), 0.5));
    let refused = |scale, init| GenerateRequest {
        hires: Some(Hires { scale, ..Hires::default() }),
        init,
        ..first.clone()
    };
    for request in [refused(0.5, None), refused(9.0, None), refused(f64::NAN, None), refused(1.5, init)] {
        assert!(draw(&request).is_err());
    }
    Ok(())
}

#[test]
fn cancelling_keeps_what_is_finished() -> Result<()> {
    let mut pipeline = pipeline("sd1")?;
    let cancel = CancelToken::default();
    let (mut kept, mut steps, mut previews) = (0, 0, 0);
    let mut observer = |event: &Event<'_>| match event {
        Event::Advanced { .. } => {
            steps += 1;
            if steps == 6 {
                cancel.cancel();
            }
        }
        Event::Preview { .. } => previews += 1,
        _ => {}
    };
    let request = GenerateRequest { steps: 4, count: 5, preview_every: 2, ..request() };
    let outcome = pipeline.generate_each(&request, &mut observer, &cancel, &mut |_, _| {
        kept += 1;
        Ok(())
    });
    assert!(outcome.is_err_and(|e| e.is_cancelled()));
    assert_eq!((kept, steps, previews), (1, 6, 3));
    Ok(())
}
