//! What the system says of this process.

use std::fs;

/// The most memory this process ever had, in MiB, mapped files included. `None` where there is no `/proc`.
pub fn peak_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Seconds all threads of this process computed so far. `None` where there is no `/proc`.
pub fn processor_seconds() -> Option<f64> {
    /// Linux counts in hundredths for programs, whatever the kernel's own clock.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, which may have spaces.
    let rest = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((number(11)? + number(12)?) / TICKS)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn grow_with_what_is_done() {
        let (mib, seconds) = (peak_mib().expect("/proc"), processor_seconds().expect("/proc"));
        let numbers: Vec<u64> = (0..8_000_000u64).map(|i| i.wrapping_mul(i) ^ 3).collect();
        let mut sum = 0;
        while processor_seconds().is_some_and(|now| now < seconds + 0.05) {
            sum ^= numbers.iter().fold(0, |a: u64, b| a.rotate_left(1) ^ b);
        }
        assert!(peak_mib().expect("/proc") >= mib.max(60.0), "{sum}");
    }
}
