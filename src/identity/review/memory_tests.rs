//! The memory of answers: its rules one by one, then random histories against a list of everything that was ever said.

use super::*;
use proptest::prelude::*;

const MOST: usize = 4;
const AGES: Ages = Ages {
    good: Duration::from_secs(60),
    refused: Duration::from_secs(10),
    away: Duration::from_secs(1),
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn good<V>(answer: V, again: bool) -> Seen<V> {
    Seen::Known {
        answer: Answer::Good(answer),
        again,
    }
}

fn known<V>(answer: Answer<V>) -> Seen<V> {
    Seen::Known {
        answer,
        again: false,
    }
}

#[test]
fn answers_count_for_their_age() {
    let (mut memory, at) = (Memory::new(MOST, AGES), Instant::now());
    assert_eq!(memory.look(&1, at), Seen::Nothing { before: false });
    memory.learn(1, &Answer::Good("x"), None, at);
    memory.learn(2, &Answer::Refused, None, at);
    memory.learn(3, &Answer::Away("hung"), None, at);
    assert_eq!(memory.look(&1, at + seconds(44)), good("x", false));
    assert_eq!(memory.look(&1, at + seconds(45)), good("x", true));
    assert_eq!(
        memory.look(&1, at + seconds(60)),
        Seen::Nothing { before: true }
    );
    assert_eq!(memory.look(&2, at + seconds(9)), known(Answer::Refused));
    assert_eq!(
        memory.look(&2, at + seconds(10)),
        Seen::Nothing { before: false }
    );
    assert_eq!(memory.look(&3, at), known(Answer::Away("hung")));
    assert_eq!(
        memory.look(&3, at + seconds(1)),
        Seen::Nothing { before: false }
    );
}

#[test]
fn a_good_answer_ends_with_what_it_is_about() {
    let (mut memory, at) = (Memory::new(MOST, AGES), Instant::now());
    memory.learn(1, &Answer::Good(()), Some(seconds(8)), at);
    assert_eq!(memory.look(&1, at + seconds(5)), good((), false));
    assert_eq!(memory.look(&1, at + seconds(6)), good((), true));
    assert_eq!(
        memory.look(&1, at + seconds(8)),
        Seen::Nothing { before: true }
    );
    memory.learn(1, &Answer::Good(()), Some(Duration::ZERO), at);
    assert_eq!(memory.look(&1, at), Seen::Nothing { before: true });
}

#[test]
fn nobody_to_ask_takes_nothing_away_and_gives_nothing() {
    let (mut memory, at) = (Memory::new(MOST, AGES), Instant::now());
    memory.learn(1, &Answer::Good(()), None, at);
    let late = at + seconds(50);
    memory.learn(1, &Answer::Away("hung"), None, late);
    assert_eq!(memory.look(&1, late), good((), false));
    assert_eq!(memory.look(&1, late + seconds(1)), good((), true));
    let over = at + seconds(60);
    memory.learn(1, &Answer::Away("hung"), None, over);
    assert_eq!(memory.look(&1, over), known(Answer::Away("hung")));
    assert_eq!(
        memory.look(&1, over + seconds(1)),
        Seen::Nothing { before: true }
    );
}

#[test]
fn a_flood_of_bad_ones_pushes_no_good_one_out() {
    let (mut memory, at) = (Memory::new(MOST, AGES), Instant::now());
    memory.learn(0, &Answer::Good(()), None, at);
    for key in 1..100 * MOST {
        memory.learn(key, &Answer::Refused, None, at);
        assert!(memory.kept() <= (1, MOST));
    }
    assert_eq!(memory.look(&0, at), good((), false));
}

#[derive(Debug, Clone)]
enum Step {
    Learn(u8, u8, Option<u64>),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..8_u8, 0..3_u8, proptest::option::of(0..90_u64))
            .prop_map(|(key, what, left)| Step::Learn(key, what, left)),
        (0..40_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens: bounded; what is let in was allowed last, and lately; a refusal is one that was given.
    #[test]
    fn histories(steps in proptest::collection::vec(step(), 1..200)) {
        let (mut memory, mut now) = (Memory::new(MOST, AGES), Instant::now());
        // The last word about each key that was a yes or a no, with the moment until which it may count.
        let mut said: HashMap<u8, (bool, Instant)> = HashMap::new();
        for step in steps {
            match step {
                Step::Pass(n) => now += seconds(n),
                Step::Learn(key, what, left) => {
                    let left = left.map(seconds);
                    let answer = match what {
                        0 => Answer::Good(key),
                        1 => Answer::Refused,
                        _ => Answer::Away("hung"),
                    };
                    memory.learn(key, &answer, left, now);
                    let age = left.map_or(AGES.good, |left| left.min(AGES.good));
                    match answer {
                        Answer::Good(_) => { said.insert(key, (true, now + age)); }
                        Answer::Refused => { said.insert(key, (false, now + AGES.refused)); }
                        Answer::Away(_) => {}
                    }
                }
            }
            let (good, bad) = memory.kept();
            prop_assert!(good <= MOST && bad <= MOST);
            for key in 0..8 {
                let last = said.get(&key).copied().filter(|(_, until)| now < *until);
                match memory.look(&key, now) {
                    Seen::Known { answer: Answer::Good(value), .. } => {
                        prop_assert_eq!(value, key);
                        prop_assert!(matches!(last, Some((true, _))), "let in without a right");
                    }
                    Seen::Known { answer: Answer::Refused, .. } => {
                        prop_assert!(matches!(last, Some((false, _))), "refused without a word");
                    }
                    Seen::Known { answer: Answer::Away(_), .. } => {
                        prop_assert!(!matches!(last, Some((true, _))) || good == MOST || said.len() > MOST,
                            "a right that counts was lost");
                    }
                    Seen::Nothing { .. } => {}
                }
            }
        }
    }
}
