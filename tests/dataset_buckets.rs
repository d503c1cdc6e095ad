//! Aspect buckets hold for any picture and any sensible options.

use proptest::prelude::*;
use scumble::dataset::{
    Bucket, BucketOptions,
    bucket::{Buckets, aspect_error},
};

fn any_options() -> impl Strategy<Value = BucketOptions> {
    (1u32..=8, 2u32..=16, 2u32..=16, any::<bool>()).prop_map(|(eighths, w, h, no_upscale)| {
        let step_px = eighths * 8;
        BucketOptions {
            resolution: (w * step_px, h * step_px),
            step_px,
            no_upscale,
            ..BucketOptions::default()
        }
    })
}

proptest! {
    #[test]
    fn every_picture_gets_a_fitting_bucket(options in any_options(), w in 1u32..30_000, h in 1u32..30_000) {
        let buckets = Buckets::new(&options).unwrap();
        let place = buckets.place((w, h));
        let Bucket { width, height } = place.bucket;
        let step = options.step_px;
        prop_assert!(width >= step && height >= step && width % step == 0 && height % step == 0);
        // With `no_upscale` a strip thinner than a step is widened to one step; nothing else may exceed the area.
        let thin = options.no_upscale && (width == step || height == step);
        prop_assert!(thin || width * height <= options.resolution.0 * options.resolution.1);
        prop_assert!(place.resized_px.0 >= width && place.resized_px.1 >= height);
        prop_assert!(place.resized_px.0 == width || place.resized_px.1 == height);
        if options.no_upscale {
            prop_assert!(!place.upscaled || w.min(h) < step || thin);
        } else {
            let error = aspect_error(&place.bucket, w, h);
            prop_assert!(buckets.sizes().iter().all(|b| aspect_error(b, w, h) >= error - 1e-12));
        }
        let turned = buckets.place((h, w)).bucket;
        if options.resolution.0 == options.resolution.1 {
            prop_assert_eq!((turned.height, turned.width), (width, height));
        }
    }
}

/// The list kohya's `make_bucket_resolutions((512, 512), 256, 1024, 64)` gives.
#[test]
fn the_list_is_kohyas() {
    let options = BucketOptions { min_px: 256, max_px: 1024, ..BucketOptions::default() };
    let sizes: Vec<String> =
        Buckets::new(&options).unwrap().sizes().iter().map(ToString::to_string).collect();
    assert_eq!(
        sizes.join(" "),
        "256x832 256x896 256x960 256x1024 320x704 320x768 384x640 448x576 512x512 576x448 640x384 \
         704x320 768x320 832x256 896x256 960x256 1024x256"
    );
}

#[test]
fn senseless_options_are_refused() {
    let refused = |options: BucketOptions, message: &str| {
        let error = Buckets::new(&options).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    };
    refused(BucketOptions { step_px: 0, ..Default::default() }, "multiple of 8");
    refused(BucketOptions { resolution: (500, 512), ..Default::default() }, "500x512");
    refused(BucketOptions { resolution: (0, 0), ..Default::default() }, "0x0");
    refused(BucketOptions { resolution: (u32::MAX, 64), ..Default::default() }, "multiples");
    refused(BucketOptions { min_px: 1024, ..Default::default() }, "leave out the resolution");
}
