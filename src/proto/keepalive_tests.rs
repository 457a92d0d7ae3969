//! Tests of the search, one behaviour each; `idle.rs` lets it live.

use super::*;

fn at(hours: f64) -> Moment {
    Moment((hours * 3_600_000.0) as u64)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn wifi() -> Bounds {
    Bounds::of(Profile::Battery, NetworkKind::Wifi, None)
}

fn prove(search: &mut Search, now: Moment) {
    for _ in 0..2 {
        let silence = search.interval(now);
        search.proven(now, silence);
    }
}

fn refute(search: &mut Search, now: Moment) {
    for _ in 0..2 {
        let silence = search.interval(now);
        assert!(search.lost(now, silence));
    }
}

/// A search that has settled at `good` seconds, having refuted `bad`, at zero.
fn steady(good: u32, bad: u32) -> Search {
    let learned = Learned { stage: Stage::Steady, good_s: Some(good), bad_s: Some(bad), probe_s: 86_400 };
    Search::resume(wifi(), learned, Duration::ZERO, at(0.0))
}

#[test]
fn bounds_are_those_of_power_and_network_and_the_server_has_the_last_word() {
    let ceiling = |profile, kind, most| Bounds::of(profile, kind, most).ceiling;
    assert_eq!(ceiling(Profile::Battery, NetworkKind::Wifi, None), s(900));
    assert_eq!(ceiling(Profile::Battery, NetworkKind::Cellular, None), s(1680));
    assert_eq!(ceiling(Profile::Mains, NetworkKind::Cellular, None), s(300));
    assert_eq!(ceiling(Profile::Battery, NetworkKind::Cellular, Some(s(320))), s(320));
    let tight = Bounds::of(Profile::Battery, NetworkKind::Wifi, Some(s(45)));
    assert_eq!((tight.start, tight.floor, tight.ceiling), (s(45), s(45), s(45)));
}

#[test]
fn growth_is_by_half_until_something_is_refuted_and_then_by_halving_the_gap() {
    let mut search = Search::new(wifi());
    for expected in [240, 360, 540] {
        assert_eq!(search.interval(at(0.0)), s(expected));
        prove(&mut search, at(0.0));
    }
    assert_eq!(search.interval(at(0.0)), s(810));
    refute(&mut search, at(0.0));
    assert_eq!(search.interval(at(0.0)), s(675));
    prove(&mut search, at(0.0));
    assert_eq!(search.interval(at(0.0)), Duration::from_millis(742_500));
    refute(&mut search, at(0.0));
    // The gap is 67 s, then 34 s, then less than 4 %.
    prove(&mut search, at(0.0));
    refute(&mut search, at(0.0));
    let learned = search.learned();
    assert_eq!((learned.stage, learned.good_s, learned.bad_s), (Stage::Steady, Some(708), Some(725)));
    assert_eq!(search.interval(at(0.0)), Duration::from_secs_f64(708.75 * 0.96));
}

#[test]
fn the_ceiling_is_kept_without_a_margin_or_a_probe() {
    let mut search = Search::new(wifi());
    for _ in 0..5 {
        prove(&mut search, at(0.0));
    }
    assert_eq!((search.learned().stage, search.interval(at(0.0))), (Stage::Steady, s(900)));
    assert_eq!(search.interval(at(1e6)), s(900));
}

#[test]
fn what_fails_at_the_start_is_halved_down_to_the_floor_and_tried_again_each_hour() {
    let mut search = Search::new(wifi());
    for expected in [240, 120, 60] {
        assert_eq!(search.interval(at(0.0)), s(expected));
        refute(&mut search, at(0.0));
    }
    assert_eq!((search.learned().stage, search.interval(at(0.9))), (Stage::Floor, s(60)));
    assert!(!search.lost(at(0.9), s(60)), "there is nothing shorter");
    assert_eq!(search.interval(at(1.1)), s(240));
}

#[test]
fn a_floor_that_works_is_where_the_search_goes_on() {
    let mut search = Search::new(wifi());
    (0..3).for_each(|_| refute(&mut search, at(0.0)));
    prove(&mut search, at(0.5));
    let learned = search.learned();
    assert_eq!((learned.stage, learned.good_s), (Stage::Up, Some(60)));
}

#[test]
fn one_loss_is_none_and_a_pong_too_early_proves_nothing() {
    let mut search = Search::new(wifi());
    assert!(search.lost(at(0.0), s(240)));
    search.proven(at(0.0), s(240));
    assert_eq!(search.interval(at(0.0)), s(240));
    search.proven(at(0.0), s(215));
    assert_eq!(search.interval(at(0.0)), s(240));
    assert!(!search.lost(at(0.0), s(215)), "it was not silent long enough");
    assert!(!search.lost(at(0.0), s(261)), "it was silent longer than was asked for");
    search.proven(at(0.0), s(216));
    assert_eq!(search.interval(at(0.0)), s(360));
}

#[test]
fn two_lost_of_six_end_a_steady_time() {
    let mut search = steady(500, 520);
    assert_eq!(search.interval(at(1.0)), s(480));
    search.lost(at(1.0), s(480));
    (0..5).for_each(|_| search.proven(at(1.0), s(480)));
    search.lost(at(1.0), s(480));
    assert_eq!(search.interval(at(1.0)), s(480), "the first is forgotten");
    search.lost(at(1.0), s(480));
    let learned = search.learned();
    assert_eq!((learned.stage, learned.good_s, learned.bad_s), (Stage::Up, None, Some(480)));
    assert_eq!(search.interval(at(1.0)), s(288));
    prove(&mut search, at(1.0));
    assert_eq!((search.learned().stage, search.interval(at(1.0))), (Stage::Bisect, s(384)));
}

#[test]
fn a_day_later_a_longer_silence_is_probed_and_one_loss_ends_that_for_two_days() {
    let mut search = steady(500, 520);
    assert_eq!(search.interval(at(23.9)), s(480));
    assert_eq!((search.interval(at(24.1)), search.learned().stage), (s(625), Stage::Probe));
    assert!(search.lost(at(24.1), s(625)));
    assert_eq!((search.interval(at(24.1)), search.learned().probe_s), (s(480), 2 * 86_400));
    assert_eq!(search.interval(at(72.0)), s(480));
    assert_eq!(search.interval(at(72.2)), s(625));
    for weeks in 1..9 {
        let now = at(200.0 * f64::from(weeks));
        search.interval(now);
        search.lost(now, s(625));
    }
    assert_eq!(search.learned().probe_s, 7 * 86_400, "a week at the most");
}

#[test]
fn a_probe_that_succeeds_begins_the_search_anew_from_there() {
    let mut search = steady(500, 520);
    search.interval(at(25.0));
    prove(&mut search, at(25.0));
    let learned = search.learned();
    assert_eq!((learned.stage, learned.good_s, learned.bad_s), (Stage::Up, Some(625), None));
    assert_eq!(search.interval(at(25.0)), s(900));
}

#[test]
fn what_was_learned_under_other_bounds_is_used_as_far_as_it_goes() {
    let mut search = steady(500, 520);
    search.bound(Bounds::of(Profile::Battery, NetworkKind::Wifi, Some(s(320))), at(0.0));
    assert_eq!((search.interval(at(0.0)), search.learned().stage), (s(320), Stage::Steady));
    search.bound(wifi(), at(0.0));
    assert_eq!(search.interval(at(0.0)), s(420), "between 320 proven and 520 refuted");
}

#[test]
fn nonsense_on_disk_is_no_harm() {
    for (good_s, bad_s) in [(Some(0), Some(0)), (Some(u32::MAX), Some(1)), (None, Some(0)), (Some(5), None)] {
        for stage in [Stage::Up, Stage::Bisect, Stage::Steady, Stage::Probe, Stage::Floor] {
            let learned = Learned { stage, good_s, bad_s, probe_s: u32::MAX };
            let mut search = Search::resume(wifi(), learned, Duration::MAX, at(0.0));
            for hours in 0..1000 {
                let interval = search.interval(at(f64::from(hours)));
                assert!((s(60)..=s(900)).contains(&interval), "{learned:?}: {interval:?}");
                search.lost(at(f64::from(hours)), interval);
            }
        }
    }
}
