//! Random numbers that are the same on every machine and in every version: SplitMix64, and the distributions drawn from it.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of a seed. `purpose` keeps the streams of one seed apart, so that a change in one leaves the others as they are.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1, never 0.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Uniform in 0..below.
    pub(crate) fn index(&mut self, below: usize) -> usize {
        ((self.uniform() * below as f64) as usize).min(below.saturating_sub(1))
    }

    /// Exponential with this mean: the time to the next of events that happen at random.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// How long something takes, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Duration {
    /// Always the same.
    Constant(f64),
    /// Without memory: the mean.
    Exponential(f64),
    /// With a long tail: the mean and the coefficient of variation.
    Lognormal { mean: f64, variation: f64 },
    /// Short, but this part is long.
    Bimodal { short: f64, long: f64, part_long: f64 },
}

impl Duration {
    pub(crate) fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Constant(seconds) => seconds,
            Self::Exponential(mean) => random.exponential(mean),
            Self::Lognormal { mean, variation } => {
                let variance = (variation * variation).ln_1p();
                (mean.ln() - variance / 2.0 + variance.sqrt() * random.normal()).exp()
            }
            Self::Bimodal { short, long, part_long } => {
                if random.uniform() < part_long {
                    long
                } else {
                    short
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distribution_has_its_mean() {
        for (distribution, mean) in [
            (Duration::Constant(2.0), 2.0),
            (Duration::Exponential(2.0), 2.0),
            (Duration::Lognormal { mean: 3.0, variation: 1.0 }, 3.0),
            (Duration::Bimodal { short: 1.0, long: 11.0, part_long: 0.1 }, 2.0),
        ] {
            let mut random = Random::new(7, "test");
            let sum: f64 = (0..50_000).map(|_| distribution.draw(&mut random)).sum();
            let drawn = sum / 50_000.0;
            assert!((drawn / mean - 1.0).abs() < 0.03, "{distribution:?}: {drawn}");
        }
    }

    #[test]
    fn a_seed_and_a_purpose_make_a_stream() {
        let draw = |seed, purpose| Random::new(seed, purpose).uniform();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
    }
}
