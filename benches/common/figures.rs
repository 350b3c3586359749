//! Measured values of one kind, and how they are printed: median (min-max).

use std::fmt;
use std::time::Duration;

/// Values of one kind, in any order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// In milliseconds.
    pub(crate) fn push_ms(&mut self, span: Duration) {
        self.push(span.as_secs_f64() * 1e3);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub(crate) fn max(&self) -> f64 {
        self.at(1.0)
    }

    /// The value below which this share of them lies. NaN if there is none.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (sorted.len() as f64 * share) as usize;
        let last = sorted.len().saturating_sub(1);
        sorted.get(place.min(last)).copied().unwrap_or(f64::NAN)
    }
}

/// `median (min-max)`, with as many digits after the point as the format asks for, or two.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.pad("-");
        }
        let digits = f.precision().unwrap_or(2);
        let median = self.median();
        let min = self.at(0.0);
        let max = self.max();
        let text = if self.len() == 1 {
            format!("{median:.digits$}")
        } else {
            format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
        };
        let width = f.width().unwrap_or(0);
        write!(f, "{text:<width$}")
    }
}

/// How many times `of` lies above `against`, by their medians.
pub(crate) fn ratio(of: &Figures, against: &Figures) -> f64 {
    of.median() / against.median()
}
