use super::*;
use proptest::prelude::*;

fn cidr(text: &str) -> Cidr {
    let (address, length) = text.split_once('/').unwrap();
    Cidr {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
    }
}

fn rule(to: &str, protocol: Option<Protocol>, ports: &[(u16, u16)]) -> Rule {
    let ports = ports.iter().map(|(first, last)| PortRange {
        first: *first,
        last: *last,
    });
    Rule {
        to: Target::Cidr(cidr(to)),
        protocol,
        ports: ports.collect(),
    }
}

fn shown(rules: &[Rule]) -> Vec<String> {
    let boxes = boxes(rules).unwrap();
    let show = |reach: &Reach| {
        format!(
            "{}-{} {:?} {}-{}",
            reach.first, reach.last, reach.protocol, reach.ports.first, reach.ports.last
        )
    };
    boxes.iter().map(show).collect()
}

#[test]
fn rules_that_cross_are_cut_into_boxes() {
    let tcp = Some(Protocol::Tcp);
    let rules = [
        rule("10.0.0.0/8", tcp, &[(443, 443)]),
        rule("10.0.0.0/16", tcp, &[(80, 80), (443, 500)]),
        rule("10.255.255.255/32", tcp, &[]),
    ];
    assert_eq!(
        shown(&rules),
        [
            "10.0.0.0-10.0.255.255 Tcp 80-80",
            "10.0.0.0-10.0.255.255 Tcp 443-500",
            "10.1.0.0-10.255.255.254 Tcp 443-443",
            "10.255.255.255-10.255.255.255 Tcp 0-65535",
        ]
    );
}

#[test]
fn whole_families_have_an_end() {
    assert_eq!(
        shown(&[rule("::/0", Some(Protocol::Udp), &[])]),
        ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff Udp 0-65535"]
    );
    assert_eq!(
        shown(&[rule("0.0.0.0/0", Some(Protocol::Udp), &[])]),
        ["0.0.0.0-255.255.255.255 Udp 0-65535"]
    );
}

#[test]
fn wildcards_stand_for_what_is_beneath() {
    assert!(matches("*.example.com", "a.example.com"));
    assert!(matches("*.example.com", "a.b.example.com"));
    assert!(!matches("*.example.com", "example.com"));
    assert!(!matches("*.example.com", ".example.com"));
    assert!(!matches("*.example.com", "badexample.com"));
    assert!(matches("example.com", "example.com"));
    assert!(!matches("example.com", "a.example.com"));
}

#[test]
fn a_published_port_or_an_allowance_of_another_mode_is_nothing() {
    let mut policy = NetworkPolicy {
        allow: vec![rule("1.1.1.1/32", None, &[])],
        publish: vec![80],
        ..NetworkPolicy::default()
    };
    let closed = Compiled::of(&policy).unwrap();
    assert!(closed.allow.is_empty() && closed.publish.is_empty() && !closed.internet);
    policy.mode = NetworkMode::Internet;
    let open = Compiled::of(&policy).unwrap();
    assert!(open.internet && open.allow.is_empty());
    assert_ne!(open.digest, closed.digest);
}

#[test]
fn every_listed_prefix_can_be_read() {
    assert_eq!(listed(NEVER).len(), NEVER.len());
    assert_eq!(listed(CLOSED).len(), CLOSED.len());
    for (address, length) in NEVER.iter().chain(CLOSED) {
        let cidr = cidr(&format!("{address}/{length}"));
        assert_eq!(span(cidr).0, number(cidr.address), "{address}/{length}");
    }
}

#[test]
fn too_many_crossings_are_refused() {
    let ports: Vec<(u16, u16)> = (0..64).map(|port| (2 * port + 1, 2 * port + 1)).collect();
    let rules: Vec<Rule> = (0..64)
        .map(|at| rule(&format!("10.{}.0.0/16", 2 * at), None, &ports))
        .collect();
    assert_eq!(boxes(&rules), Err(TooManyRanges));
}

prop_compose! {
    fn any_rule()(
        low in 0_u32..64, length in 26_u8..=32, ports in prop::collection::vec((1_u16..20, 0_u16..5), 0..3),
        protocol in prop::option::of(prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]),
    ) -> Rule {
        let (first, _) = span(Cidr { address: Ipv4Addr::from(low).into(), length });
        Rule {
            to: Target::Cidr(Cidr { address: address(true, first), length }),
            protocol,
            ports: ports.into_iter().map(|(first, more)| PortRange { first, last: first + more }).collect(),
        }
    }
}

proptest! {
    #[test]
    fn boxes_are_apart_and_say_what_the_rules_say(rules in prop::collection::vec(any_rule(), 0..8)) {
        let boxes = boxes(&rules).unwrap();
        for address in (0..70).map(|low| IpAddr::from(Ipv4Addr::from(low))) {
            for protocol in PROTOCOLS {
                for port in 1..30 {
                    let said = rules.iter().any(|rule| {
                        let Target::Cidr(cidr) = &rule.to else { return false };
                        covers(*cidr, address)
                            && rule.protocol.is_none_or(|only| only == protocol)
                            && (rule.ports.is_empty()
                                || rule.ports.iter().any(|r| (r.first..=r.last).contains(&port)))
                    });
                    let hit = boxes.iter().filter(|reach| {
                        (reach.first..=reach.last).contains(&address)
                            && reach.protocol == protocol
                            && (reach.ports.first..=reach.ports.last).contains(&port)
                    });
                    prop_assert_eq!(hit.count(), usize::from(said), "{} {:?} {}", address, protocol, port);
                }
            }
        }
    }
}
