//! What solvers are called, here and elsewhere.

use std::{fmt, str::FromStr};

use super::Sampler;
use crate::{
    diffusion::SigmaSchedule,
    error::{Error, Result},
};

impl Sampler {
    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Euler => "euler",
            Self::EulerA => "euler_a",
            Self::Heun => "heun",
            Self::Dpm2 => "dpm2",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpmpp2sA => "dpmpp_2s_a",
            Self::DpmppSde => "dpmpp_sde",
            Self::Dpmpp2mSde => "dpmpp_2m_sde",
            Self::Unipc => "unipc",
            Self::Lcm => "lcm",
        }
    }

    /// The name A1111 writes as `Sampler`.
    pub fn display_name(self) -> &'static str {
        match self {
            Self::Ddim => "DDIM",
            Self::Ddpm => "DDPM",
            Self::Euler => "Euler",
            Self::EulerA => "Euler a",
            Self::Heun => "Heun",
            Self::Dpm2 => "DPM2",
            Self::Dpmpp2m => "DPM++ 2M",
            Self::Dpmpp2sA => "DPM++ 2S a",
            Self::DpmppSde => "DPM++ SDE",
            Self::Dpmpp2mSde => "DPM++ 2M SDE",
            Self::Unipc => "UniPC",
            Self::Lcm => "LCM",
        }
    }

    /// Reads A1111's older names, which end in the schedule: `DPM++ 2M Karras`.
    ///
    /// # Errors
    /// If no solver is called so.
    pub fn parse_with_schedule(name: &str) -> Result<(Self, Option<SigmaSchedule>)> {
        if let Ok(sampler) = name.parse() {
            return Ok((sampler, None));
        }
        let lower = name.trim().to_lowercase();
        for schedule in SigmaSchedule::ALL {
            let suffix = schedule.display_name().to_lowercase();
            if let Some(Ok(sampler)) = lower.strip_suffix(&suffix).map(str::parse) {
                return Ok((sampler, Some(schedule)));
            }
        }
        name.parse().map(|sampler| (sampler, None))
    }

    fn from_alias(key: &str) -> Option<Self> {
        Some(match key {
            "ddim" | "ddimscheduler" => Self::Ddim,
            "ddpm" | "ddpmscheduler" => Self::Ddpm,
            "euler" | "eulerdiscretescheduler" => Self::Euler,
            "eulera" | "eulerancestral" | "eulerancestraldiscretescheduler" => Self::EulerA,
            "heun" | "heundiscretescheduler" => Self::Heun,
            "dpm2" | "kdpm2discretescheduler" => Self::Dpm2,
            "dpmpp2m" | "dpmsolvermultistepscheduler" => Self::Dpmpp2m,
            "dpmpp2sa" | "dpmpp2sancestral" => Self::Dpmpp2sA,
            "dpmppsde" | "dpmsolversdescheduler" => Self::DpmppSde,
            "dpmpp2msde" => Self::Dpmpp2mSde,
            "unipc" | "unipcbh2" | "unipcmultistepscheduler" => Self::Unipc,
            "lcm" | "lcmscheduler" => Self::Lcm,
            _ => return None,
        })
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let lower = s.trim().to_lowercase().replace("++", "pp");
        let bare = lower.strip_prefix("k_").unwrap_or(&lower);
        let key: String = bare.chars().filter(char::is_ascii_alphanumeric).collect();
        Self::from_alias(&key).ok_or_else(|| Error::unknown("sampler", s, Self::ALL.map(Self::name)))
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() -> Result<()> {
        for sampler in Sampler::ALL {
            assert_eq!(sampler.name().parse::<Sampler>()?, sampler);
            assert_eq!(sampler.display_name().parse::<Sampler>()?, sampler);
            assert_eq!(format!("k_{sampler}").parse::<Sampler>()?, sampler);
        }
        let old = Sampler::parse_with_schedule("DPM++ 2M Karras")?;
        assert_eq!(old, (Sampler::Dpmpp2m, Some(SigmaSchedule::Karras)));
        assert_eq!("k_dpm_2".parse::<Sampler>()?, Sampler::Dpm2);
        let error = "dpmpp_2mm".parse::<Sampler>().unwrap_err();
        assert!(error.hint().unwrap_or_default().contains("dpmpp_2m"), "{error}");
        Ok(())
    }
}
