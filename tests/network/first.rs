//! One sandbox, from its interface to nothing left.

use crate::world::{Outcome, World, id, internet, on_a_node, pool};
use hearth::net::Network;

#[test]
fn a_sandbox_reaches_the_internet_and_nothing_else_and_goes_without_a_trace() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        assert_eq!(sandbox.tcp("93.184.216.34", 80), Outcome::Reached);
        assert_eq!(sandbox.udp("93.184.216.34", 80), Outcome::Reached);
        assert_eq!(sandbox.tcp("2606:2800:220:1::1", 80), Outcome::Reached);
        assert_eq!(sandbox.udp("2606:2800:220:1::1", 80), Outcome::Reached);
        for closed in ["10.0.0.1", "169.254.169.254", "192.0.2.2", "fd12::1"] {
            assert_eq!(sandbox.tcp(closed, 80), Outcome::Refused, "{closed}");
            assert_eq!(sandbox.udp(closed, 80), Outcome::Refused, "{closed}");
        }
        let report = net.report(id(1)).await.unwrap();
        assert!(report.denied_packets >= 8, "{report:?}");
        assert!(
            report
                .denied
                .iter()
                .any(|d| (&*d.0, d.1.to_string(), d.2) == ("tcp", "10.0.0.1".to_owned(), 80))
        );
        net.release(id(1)).await.unwrap();
        net.dismantle().await.unwrap();
    });
}
