//! Numbers on the command line. What is out of range is refused with the range; clap puts the option's name and what
//! was found in front.

use std::fmt::Display;

/// A parser of whole numbers from `low` on, up to `high` (the type's largest is none).
pub(super) fn whole<T>(low: T, high: T) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: TryFrom<i128> + Copy + PartialOrd + Display + Send + Sync + 'static,
{
    let open = high.to_string().len() > 9;
    let range = if open { format!("{low} or more") } else { format!("from {low} to {high}") };
    move |text| {
        let number = text.trim().parse::<i128>().ok().and_then(|n| T::try_from(n).ok());
        number
            .filter(|n| (low..=high).contains(n))
            .ok_or_else(|| format!("expected a whole number, {range}, found `{text}`"))
    }
}

/// A parser of numbers from `low` to `high`.
pub(super) fn real(
    low: f64,
    high: f64,
) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.trim().parse::<f64>().ok();
        number
            .filter(|n| (low..=high).contains(n))
            .ok_or_else(|| format!("expected a number from {low} to {high}, found `{text}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_and_named() {
        assert_eq!(whole(1usize, 1000)("25"), Ok(25));
        for text in ["0", "1001", "-1", "2.5", "nan", "99999999999999999999999", ""] {
            let expected = format!("expected a whole number, from 1 to 1000, found `{text}`");
            assert_eq!(whole(1usize, 1000)(text), Err(expected));
        }
        assert!(whole(1, u64::MAX)("0").is_err_and(|e| e.contains("1 or more")));
        assert_eq!(real(0.0, 1.0)("0.5"), Ok(0.5));
        for text in ["-0.1", "1.1", "NaN", "inf", "-inf", "x"] {
            assert!(real(0.0, 1.0)(text).is_err_and(|e| e.contains("from 0 to 1, found")), "{text}");
        }
    }
}
