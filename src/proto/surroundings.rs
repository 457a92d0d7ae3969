//! What the device's surroundings allow: power and price. They decide what may wake it.

/// Where the device's power comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// From outside; also where nobody says.
    #[default]
    External,
    /// From a battery.
    Battery,
    /// From a battery with 15 % or less.
    LowBattery,
}

impl Power {
    /// Its word, wherever it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Battery => "battery",
            Self::LowBattery => "low-battery",
        }
    }
}

/// What is known of the surroundings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Where the power comes from.
    pub power: Power,
    /// Whether the network is paid for by the byte.
    pub metered: bool,
}
