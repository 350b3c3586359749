//! What the clouds' services are like: the questions that other rooms ask about a service, each
//! answered for every one of them.

use super::Service;

impl Service {
    /// True where a server shows its last power operation for ever.
    pub const fn shows_last_operation(self) -> bool {
        match self {
            Self::Bms => false,
            Self::CloudDc => true,
        }
    }

    /// True where a document lists the codes with which the service itself refuses: `BMS.` and, of
    /// its job engine, `Common.`.
    pub const fn documents_its_refusals(self) -> bool {
        match self {
            Self::Bms => true,
            Self::CloudDc => false,
        }
    }

    /// The most servers one submit call takes. Source: BMS and CloudDC API references.
    pub const fn batch_servers_cap(self) -> u32 {
        match self {
            Self::Bms => 1000,
            Self::CloudDc => 50,
        }
    }
}
