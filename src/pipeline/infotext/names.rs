//! The web UI's names for samplers and schedules, and ours.

/// (ours, theirs). Where they have several, the first is written.
const SAMPLERS: &[(&str, &str)] = &[
    ("euler", "Euler"),
    ("euler_a", "Euler a"),
    ("heun", "Heun"),
    ("lms", "LMS"),
    ("dpm2", "DPM2"),
    ("dpm2_a", "DPM2 a"),
    ("dpmpp_2s_a", "DPM++ 2S a"),
    ("dpmpp_2m", "DPM++ 2M"),
    ("dpmpp_sde", "DPM++ SDE"),
    ("dpmpp_2m_sde", "DPM++ 2M SDE"),
    ("dpmpp_3m_sde", "DPM++ 3M SDE"),
    ("ddim", "DDIM"),
    ("ddpm", "DDPM"),
    ("unipc", "UniPC"),
    ("lcm", "LCM"),
];

const SCHEDULES: &[(&str, &str)] = &[
    ("normal", "Normal"),
    ("normal", "Uniform"),
    ("karras", "Karras"),
    ("exponential", "Exponential"),
    ("sgm_uniform", "SGM Uniform"),
    ("simple", "Simple"),
];

/// The label for one of our sampler names; another name stays as it is.
pub fn sampler_label(name: &str) -> String {
    label(SAMPLERS, name)
}

/// The label for one of our schedule names; another name stays as it is.
pub fn schedule_label(name: &str) -> String {
    label(SCHEDULES, name)
}

/// Our name for a schedule's label, if we have it.
pub fn schedule_name(label: &str) -> String {
    name(SCHEDULES, label).map_or_else(|| label.to_owned(), str::to_owned)
}

/// A sampler's label → our name, and the schedule that older files append to it.
pub fn split_label(label: &str) -> (String, Option<String>) {
    if let Some(sampler) = name(SAMPLERS, label) {
        return (sampler.to_owned(), None);
    }
    let split = label.rsplit_once(' ').and_then(|(sampler, schedule)| {
        Some((name(SAMPLERS, sampler)?.to_owned(), Some(name(SCHEDULES, schedule)?.to_owned())))
    });
    split.unwrap_or_else(|| (label.to_owned(), None))
}

fn label(table: &[(&str, &str)], name: &str) -> String {
    table.iter().find(|(ours, _)| *ours == name).map_or(name, |(_, theirs)| theirs).to_owned()
}

fn name<'a>(table: &[(&'a str, &str)], label: &str) -> Option<&'a str> {
    table.iter().find(|(_, theirs)| theirs.eq_ignore_ascii_case(label)).map(|(ours, _)| *ours)
}
