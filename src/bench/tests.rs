use super::*;
use crate::weights::Family;

fn case(task: Task) -> Case {
    let subject = Subject::Real("mini".into());
    Case { subject, task, size_px: Some(32), batch: 1, rank: 8, dtype: DType::F32, device: Device::Cpu }
}

#[test]
fn every_task_runs_and_counts_its_arithmetic() -> Result<()> {
    let cancel = CancelToken::default();
    for task in Task::ALL {
        let measured = measure(&case(task), Runs { warmup: 0, counted: 2 }, &cancel)?;
        assert_eq!(measured.seconds.len(), 2, "{task}");
        assert!(measured.gflop > 0.0 && measured.median_seconds() > 0.0, "{task}: {measured:?}");
        assert_eq!(task.name().parse::<Task>()?, task);
    }
    Ok(())
}

#[test]
fn the_error_of_half_precision_is_that_of_its_rounding() -> Result<()> {
    let cancel = CancelToken::default();
    for task in [Task::Unet, Task::VaeDecode, Task::VaeEncode, Task::Text] {
        assert_eq!(error(&case(task), &cancel)?, Some(0.0), "{task} in f32");
        let rounded = error(&Case { dtype: DType::BF16, ..case(task) }, &cancel)?.unwrap_or_default();
        assert!((1e-4..0.1).contains(&rounded), "{task}: {rounded}");
    }
    assert_eq!(error(&case(Task::Train), &cancel)?, None);
    Ok(())
}

/// Whole networks as they run on a card: its kernels, emulated.
#[cfg(target_os = "linux")]
#[test]
fn a_card_errs_by_its_rounding_alone() -> Result<()> {
    use crate::ops::cuda::emulated::on_a_card;
    let cancel = CancelToken::default();
    for task in [Task::Unet, Task::VaeDecode, Task::Text] {
        let work = || error(&Case { dtype: DType::BF16, ..case(task) }, &cancel);
        let Some(rounded) = on_a_card(work) else { return Ok(()) };
        let rounded = rounded?;
        assert!((1e-4..0.1).contains(&rounded.unwrap_or_default()), "{task}: {rounded:?}");
    }
    Ok(())
}

/// And backward, through checkpoints.
#[cfg(target_os = "linux")]
#[test]
fn a_card_learns_what_the_processor_learns() -> Result<()> {
    use crate::ops::cuda::emulated::on_a_card;
    let case = case(Task::TrainCheckpointing);
    let Some(found) = on_a_card(|| task::learnt(&Case { dtype: DType::BF16, ..case.clone() })) else {
        return Ok(());
    };
    let ((losses, found), (exact_losses, exact)) = (found?, task::learnt(&case)?);
    for (found, exact) in losses.iter().zip(&exact_losses) {
        assert!((found / exact - 1.0).abs() < 2e-2, "{found} against {exact}");
    }
    for (found, exact) in found.iter().zip(&exact) {
        let product = |a: &Tensor, b: &Tensor| -> Result<f64> {
            Ok((a.to_dtype(DType::F64)? * b.to_dtype(DType::F64)?)?.sum_all()?.to_scalar()?)
        };
        let cosine = product(found, exact)? / (product(found, found)? * product(exact, exact)?).sqrt();
        assert!(cosine > 0.9, "gradients point elsewhere: {cosine}");
    }
    Ok(())
}

#[test]
fn a_family_is_random_and_a_model_is_not() -> Result<()> {
    assert_eq!("sdxl".parse::<Subject>()?, Subject::Random(Family::Sdxl));
    assert_eq!("mini".parse::<Subject>()?, Subject::Real("mini".into()));
    let wrong = Case { size_px: Some(100), ..case(Task::Unet) };
    assert!(measure(&wrong, Runs { warmup: 0, counted: 1 }, &CancelToken::default()).is_err());
    Ok(())
}
