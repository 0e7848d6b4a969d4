use super::*;
use crate::machine::network::{NetworkMode, NetworkPolicy, Rule, Target};
use crate::net::rules::{CLOSED, NEVER, listed};
use simple_dns::Name;
use simple_dns::rdata::{A, CNAME};

fn question(name: &str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(7);
    let question = Question::new(
        Name::new_unchecked(name),
        kind.into(),
        CLASS::IN.into(),
        false,
    );
    packet.questions.push(question.into_owned());
    packet.build_bytes_vec().unwrap()
}

fn policy(allow: &[&str], deny: &[&str]) -> Compiled {
    let rules = |names: &[&str]| {
        let rule = |name: &&str| Rule {
            to: match name.parse() {
                Ok(address) => Target::Cidr(Cidr {
                    address,
                    length: 32,
                }),
                Err(_) => Target::Name((*name).to_owned()),
            },
            protocol: None,
            ports: Vec::new(),
        };
        names.iter().map(rule).collect()
    };
    let mode = if allow.is_empty() {
        NetworkMode::Internet
    } else {
        NetworkMode::Allowlist
    };
    let policy = NetworkPolicy {
        mode,
        allow: rules(allow),
        deny: rules(deny),
        publish: Vec::new(),
    };
    Compiled::of(&policy).unwrap()
}

fn record(name: &str, address: [u8; 4], ttl: u32) -> ResourceRecord<'static> {
    let data = RData::A(A {
        address: Ipv4Addr::from(address).into(),
    });
    ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, data).into_owned()
}

fn reply(records: Vec<ResourceRecord<'static>>) -> Vec<u8> {
    let asking = read(&question("a.example", TYPE::A)).unwrap();
    let mut asking = asking;
    asking.id = 99;
    answer(&asking, RCODE::NoError, &records, None)
}

fn kept(policy: &Compiled, records: Vec<ResourceRecord<'static>>) -> (Vec<String>, bool) {
    let asking = read(&question("a.example", TYPE::A)).unwrap();
    let bytes = reply(records);
    let packet = parse(&asking, 99, &bytes).unwrap();
    let (never, closed) = (listed(NEVER), listed(CLOSED));
    let node = [IpAddr::from([9, 9, 9, 9])];
    let ranges = Ranges {
        never: &never,
        closed: &closed,
        node: &node,
    };
    let kept = keep(&asking, policy, ranges, packet);
    let shown = kept
        .addresses
        .iter()
        .map(|(address, life)| format!("{address} {}", life.as_secs()));
    (shown.collect(), kept.emptied)
}

#[test]
fn only_a_plain_question_is_read() {
    let asking = read(&question("A.Example", TYPE::A)).unwrap();
    assert_eq!(
        (asking.id, asking.name.as_str(), asking.room),
        (7, "a.example", 512)
    );
    let fine = question("a.example", TYPE::A);
    let with = |at: usize, value: u8| {
        let mut bytes = fine.clone();
        bytes[at] = value;
        read(&bytes).unwrap_err()
    };
    assert_eq!(read(&fine[..11]).unwrap_err(), Malformed::Nothing);
    assert_eq!(with(2, 0x81), Malformed::Nothing);
    for (at, value) in [
        (4, 1),
        (5, 2),
        (5, 0),
        (6, 255),
        (8, 255),
        (10, 255),
        (2, 0x29),
    ] {
        assert_eq!(with(at, value), Malformed::Unsupported(7), "{at}");
    }
    let long = [fine.clone(), vec![0; QUESTION_BYTES]].concat();
    assert_eq!(read(&long).unwrap_err(), Malformed::Nothing);
    assert_eq!(
        read(&question("a b.example", TYPE::A)).unwrap_err(),
        Malformed::Unsupported(7)
    );
}

#[test]
fn no_bytes_make_it_fall() {
    let whole = [
        question("a.example", TYPE::A),
        reply(vec![record("a.example", [1, 1, 1, 1], 5)]),
    ];
    let asking = read(&whole[0]).unwrap();
    for bytes in &whole {
        for at in 0..bytes.len() {
            let _ = read(&bytes[..at]);
            let _ = parse(&asking, 99, &bytes[..at]);
            for value in [0, 1, 0x3f, 0x7f, 0xc0, 0xff] {
                let mut other = bytes.clone();
                other[at] = value;
                let _ = read(&other);
                let _ = parse(&asking, 99, &other);
            }
        }
    }
}

#[test]
fn names_are_asked_as_the_policy_says() {
    let internet = policy(&[], &["bad.example", "*.worse.example"]);
    assert!(may_ask(&internet, "a.example"));
    assert!(!may_ask(&internet, "bad.example"));
    assert!(!may_ask(&internet, "x.worse.example"));
    let list = policy(&["a.example", "*.b.example"], &["c.b.example"]);
    for (name, may) in [
        ("a.example", true),
        ("x.a.example", false),
        ("x.b.example", true),
        ("c.b.example", false),
        ("other", false),
    ] {
        assert_eq!(may_ask(&list, name), may, "{name}");
    }
}

#[test]
fn answers_that_lead_where_nobody_may_go_are_taken_out() {
    let list = policy(&["a.example"], &[]);
    let all = || {
        vec![
            record("a.example", [1, 1, 1, 1], 5),
            record("a.example", [2, 2, 2, 2], 1_000_000),
            record("a.example", [10, 0, 0, 1], 60),
            record("a.example", [169, 254, 169, 254], 60),
            record("a.example", [9, 9, 9, 9], 60),
            record("other.example", [3, 3, 3, 3], 60),
        ]
    };
    let expected = ["1.1.1.1 30".to_owned(), "2.2.2.2 3600".to_owned()];
    assert_eq!(kept(&list, all()), (expected.to_vec(), false));
    // The allowlist names the private address too.
    let both = policy(&["a.example", "10.0.0.1", "169.254.169.254"], &[]);
    assert_eq!(kept(&both, all()).0.len(), 3);
    let private = vec![record("a.example", [10, 0, 0, 1], 60)];
    assert_eq!(kept(&list, private), (Vec::new(), true));
    assert_eq!(kept(&list, Vec::new()), (Vec::new(), false));
}

#[test]
fn an_answer_follows_its_aliases() {
    let alias = RData::CNAME(CNAME(Name::new_unchecked("cdn.example")));
    let alias =
        ResourceRecord::new(Name::new_unchecked("a.example"), CLASS::IN, 5, alias).into_owned();
    let records = vec![alias, record("cdn.example", [1, 1, 1, 1], 60)];
    assert_eq!(
        kept(&policy(&["a.example"], &[]), records).0,
        ["1.1.1.1 60"]
    );
}

#[test]
fn another_questions_answer_is_none() {
    let bytes = reply(vec![record("a.example", [1, 1, 1, 1], 5)]);
    let asking = read(&question("b.example", TYPE::A)).unwrap();
    assert!(parse(&asking, 99, &bytes).is_none());
    let asking = read(&question("a.example", TYPE::AAAA)).unwrap();
    assert!(parse(&asking, 99, &bytes).is_none());
    let asking = read(&question("a.example", TYPE::A)).unwrap();
    assert!(parse(&asking, 98, &bytes).is_none());
    assert!(parse(&asking, 99, &bytes).is_some());
}

#[test]
fn a_long_answer_is_cut_over_udp_only() {
    let asking = read(&question("a.example", TYPE::A)).unwrap();
    let records: Vec<_> = (0..100)
        .map(|low| record("a.example", [1, 1, 1, low], 5))
        .collect();
    let cut = answer(&asking, RCODE::NoError, &records, Some(512));
    assert!(cut.len() <= 512 && cut[2] & 2 != 0);
    let whole = answer(&asking, RCODE::NoError, &records, None);
    assert!(whole.len() > 1000 && whole[2] & 2 == 0);
}
