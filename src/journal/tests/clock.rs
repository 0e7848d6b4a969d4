use super::super::clock::Anchor;
use super::*;
use proptest::prelude::*;

type Rule = (&'static str, (&'static str, u64, u64), u64, u64);

/// (what happened, boot of the next start, newest committed time, expected start), after a first start at wall 1,000,000
/// and boottime 5,000 of boot "a".
const RULES: &[Rule] = &[
    (
        "restart in the same boot",
        ("a", 8_000, 1_003_000),
        1_000_000,
        1_003_000,
    ),
    (
        "the wall clock was stepped back while hearthd was down",
        ("a", 8_000, 500),
        1_000_000,
        1_003_000,
    ),
    (
        "the wall clock was stepped forward",
        ("a", 8_000, 9_999_999),
        1_000_000,
        1_003_000,
    ),
    (
        "commits since are no later than the boot clock",
        ("a", 8_000, 0),
        1_002_999,
        1_003_000,
    ),
    (
        "a reboot takes the wall clock's time",
        ("b", 100, 1_060_000),
        1_004_000,
        1_060_000,
    ),
    (
        "a reboot with the wall clock behind: goes on where it was",
        ("b", 100, 0),
        1_004_000,
        1_004_000,
    ),
    (
        "a reboot without any commit since the start",
        ("b", 100, 0),
        1_000_000,
        1_000_000,
    ),
    (
        "a boot clock that fell within a boot is not believed",
        ("a", 1_000, 0),
        1_004_000,
        1_004_000,
    ),
];

#[test]
fn rules() {
    let first = Anchor::first(&boot("a", 5_000, 1_000_000));
    assert_eq!(first.now, Now(1_000_000));
    for (what, (id, boottime_ms, wall_ms), last, expected) in RULES {
        let next = first.next(Now(*last), &boot(id, *boottime_ms, *wall_ms));
        assert_eq!(next.now, Now(*expected), "{what}");
        assert_eq!(next.boottime_ms, *boottime_ms, "{what}");
    }
}

#[derive(Debug, Clone)]
struct Session {
    reboot: bool,
    down_ms: u64,
    wall_ms: u64,
    /// Times after the start at which something is committed; one more passes uncommitted.
    commits: Vec<u64>,
    idle_ms: u64,
}

fn session() -> impl Strategy<Value = Session> {
    let wall = prop_oneof![Just(0), 0..u64::MAX, Just(u64::MAX)];
    let commits = prop::collection::vec(0..100_000u64, 0..4);
    (any::<bool>(), 0..1_000_000u64, wall, commits, 0..100_000u64).prop_map(
        |(reboot, down_ms, wall_ms, commits, idle_ms)| Session {
            reboot,
            down_ms,
            wall_ms,
            commits,
            idle_ms,
        },
    )
}

proptest! {
    /// Over any sequence of restarts, reboots and clock steps: what was committed is never later than the next start,
    /// and within one boot hearth time passes exactly as CLOCK_BOOTTIME does.
    #[test]
    fn never_falls(sessions in prop::collection::vec(session(), 1..12)) {
        let mut boots = 0;
        let mut boottime = 10_000;
        let mut anchor: Option<Anchor> = None;
        let mut last = Now(0);
        // Of this boot: boottime and time of its first start.
        let mut reference = None;
        for session in sessions {
            if session.reboot {
                boots += 1;
                boottime = 5_000;
                reference = None;
            } else {
                boottime += session.down_ms;
            }
            let now = boot(&format!("boot-{boots}"), boottime, session.wall_ms);
            let next = anchor.map_or_else(|| Anchor::first(&now), |anchor| anchor.next(last, &now));
            prop_assert!(next.now >= last);
            let (boottime_then, start_then) = *reference.get_or_insert((boottime, next.now));
            prop_assert_eq!(next.now, start_then.plus(boottime - boottime_then));
            last = next.now;
            for passed in session.commits {
                boottime += passed;
                last = last.max(next.now.plus(boottime - next.boottime_ms));
            }
            boottime += session.idle_ms;
            anchor = Some(next);
        }
    }
}

#[test]
fn a_start_is_kept_by_the_journal() {
    let dir = temp_dir();
    let at = |id, boottime_ms, wall_ms| Settings {
        boot: boot(id, boottime_ms, wall_ms),
        ..settings(dir.path())
    };
    let mut rig = open_with(&at("a", 5_000, 1_000_000)).unwrap();
    assert_eq!(rig.start, Now(1_000_000));
    rig.journal
        .append(Ticket(1), Now(1_002_000), vec![Op::PutSequence(1)]);
    // A later batch with an older time does not turn it back.
    rig.journal
        .append(Ticket(2), Now(1_001_000), vec![Op::PutSequence(2)]);
    drop(rig);
    // The same boot: CLOCK_BOOTTIME counts.
    let rig = open_with(&at("a", 7_500, 77)).unwrap();
    assert_eq!(rig.start, Now(1_002_500));
    drop(rig);
    // Another one, with a clock that lost its battery: the last start was committed as well.
    let rig = open_with(&at("b", 1, 77)).unwrap();
    assert_eq!(rig.start, Now(1_002_500));
    drop(rig);
    let rig = open_with(&at("c", 1, 2_000_000)).unwrap();
    assert_eq!(rig.start, Now(2_000_000));
}
