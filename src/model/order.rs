//! Orders with waves, as plain values.

use super::{LetGo, OrderState, UtcMillis};

/// One row of `orders`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub i64);

/// An order, as far as its waves go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its name.
    pub label: String,
    /// The sizes as they were written, such as `1, 5%, 25%`.
    pub waves: String,
    /// As it was written, such as `2%`.
    pub failures_max: String,
    /// As it was written, such as `10m`.
    pub pause: Option<String>,
    /// What the queue says.
    pub state: OrderState,
    /// The present wave, from 1.
    pub wave: u64,
    /// Its servers; 0: it has not been opened.
    pub wave_size: u64,
    /// Servers that it has let go.
    pub wave_taken: u64,
    /// When it was over; none: it is not, as far as was known.
    pub over_at: Option<UtcMillis>,
    /// What an operator lets go.
    pub let_go: Option<LetGo>,
    /// How many servers the order has.
    pub servers: u64,
    /// Some of its requests have not ended.
    pub is_unfinished: bool,
    /// Requests of the present wave have not ended.
    pub is_on_its_way: bool,
    /// Requests that are due wait for their wave.
    pub has_due: bool,
    /// A request of the present wave has succeeded.
    pub has_success: bool,
    /// Servers whose newest request is failed or unknown.
    pub failed: u64,
    /// Those of them that the present wave has carried.
    pub failed_in_wave: u64,
    /// Its time has passed.
    pub is_past: bool,
}

/// What is to be stored of an order that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderNews {
    /// Where it is.
    pub state: OrderState,
    /// When its present wave was over; none: it is not.
    pub over_at: Option<UtcMillis>,
    /// Why its next wave does not leave; none: nobody waits for it.
    pub reason: Option<String>,
    /// It may leave then.
    pub until: Option<UtcMillis>,
}

impl LetGo {
    /// True if it is about all waves that remain.
    pub const fn is_rest(self) -> bool {
        match self {
            Self::Wave => false,
            Self::Rest => true,
        }
    }
}
