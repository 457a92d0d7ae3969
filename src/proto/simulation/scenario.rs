//! What can happen, and how often.

use std::ops::Range;

use proptest::prelude::*;

use super::super::frame::Reason;
use super::super::surroundings::{Power, Surroundings};
use super::super::urgency::Urgency;
use super::super::{AppId, Luck};

pub(super) const FOREVER_S: u32 = 30 * 24 * 3600;
/// The one app that the server does not know.
pub(super) const UNKNOWN: u8 = 3;

#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) weather: Weather,
    /// What happens, each so many milliseconds after the one before.
    pub(super) script: Vec<(u64, Act)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) loss_percent: u64,
    pub(super) double_percent: u64,
    pub(super) delay_ms: u64,
    pub(super) disk_ms: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Send { app: u8, count: u8, ttl_s: u32, urgency: Urgency },
    Offer { app: u8, count: u8, urgency: Urgency },
    Surroundings(Surroundings),
    Register { app: u8 },
    Deregister { app: u8 },
    Revoke { app: u8 },
    Cut { told: bool },
    RestartDevice { down_ms: u64 },
    RestartServer { down_ms: u64 },
    Sleep { ms: u64 },
    DiskFails,
    Goodbye { reason: Reason, retry_after_s: Option<u32> },
    TryNow,
}

/// A small deterministic generator (SplitMix64).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(super) fn luck(&mut self) -> Luck {
        Luck(self.below(1 << 32) as u32)
    }
}

pub(super) fn app_id(app: u8) -> AppId {
    format!("app.{app}").parse().unwrap()
}

fn act() -> impl Strategy<Value = Act> {
    let ttl_s = || prop_oneof![1 => 1..120_u32, 3 => Just(FOREVER_S)];
    let reason = prop::sample::select(vec![Reason::Shutdown, Reason::Replaced, Reason::Busy, Reason::BadSecret]);
    let down_ms = || prop_oneof![1..100_u64, 1..60_000_u64];
    let urgency = || prop::sample::select(Urgency::ALL.to_vec());
    let send = |count: Range<u8>| {
        (0..3_u8, count, ttl_s(), urgency()).prop_map(|(app, count, ttl_s, urgency)| Act::Send {
            app,
            count,
            ttl_s,
            urgency,
        })
    };
    let power = prop::sample::select(vec![Power::External, Power::Battery, Power::LowBattery]);
    prop_oneof![
        8 => send(1..4),
        3 => send(20..80),
        3 => (0..3_u8, 1..40_u8, urgency()).prop_map(|(app, count, urgency)| Act::Offer { app, count, urgency }),
        3 => (power, any::<bool>()).prop_map(|(power, metered)| Act::Surroundings(Surroundings { power, metered })),
        4 => (0..4_u8).prop_map(|app| Act::Register { app }),
        1 => (0..4_u8).prop_map(|app| Act::Deregister { app }),
        1 => (0..3_u8).prop_map(|app| Act::Revoke { app }),
        3 => any::<bool>().prop_map(|told| Act::Cut { told }),
        2 => down_ms().prop_map(|down_ms| Act::RestartDevice { down_ms }),
        2 => down_ms().prop_map(|down_ms| Act::RestartServer { down_ms }),
        1 => (1..400_000_u64).prop_map(|ms| Act::Sleep { ms }),
        1 => Just(Act::DiskFails),
        1 => (reason, prop::option::of(0..300_u32))
            .prop_map(|(reason, retry_after_s)| Act::Goodbye { reason, retry_after_s }),
        3 => Just(Act::TryNow),
    ]
}

pub(super) fn scenario() -> impl Strategy<Value = Scenario> {
    let percent = || prop_oneof![Just(0), 1..8_u64, 8..30_u64];
    let weather = (percent(), percent(), prop_oneof![1..300_u64, 1..8_000_u64], prop_oneof![1..50_u64, 1..3_000_u64])
        .prop_map(|(loss_percent, double_percent, delay_ms, disk_ms)| Weather {
            loss_percent,
            double_percent,
            delay_ms,
            disk_ms,
        });
    let gap = prop_oneof![4 => 0..500_u64, 4 => 0..10_000_u64, 1 => 0..600_000_u64];
    let opening = [0, 1, 2].map(|app| (0, Act::Register { app }));
    let length = prop_oneof![1..10_usize, 10..60_usize];
    let script = length.prop_flat_map(move |length| prop::collection::vec((gap.clone(), act()), length));
    (any::<u64>(), weather, script).prop_map(move |(seed, weather, script)| Scenario {
        seed,
        weather,
        script: opening.iter().cloned().chain(script).collect(),
    })
}
