//! RuntimeClass objects and the node's labels, as the machine knows them.

use super::follow::Followed;
use super::node;
use crate::driver::Handle;
use crate::machine::classes::{Classes, RuntimeClass};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::RuntimeClass as Object;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::sync::Arc;
use tracing::warn;

/// Tells the driver what it must know of classes, at each change of it. Ends with the watches.
pub async fn tell(mut objects: Followed<Object>, mut nodes: Followed<Node>, handle: Handle) {
    let mut told = None;
    loop {
        let known = known(&objects, &nodes, &handle);
        if let Some(known) = known
            && told.as_ref() != Some(&known)
        {
            told = Some(known.clone());
            handle.tell_classes(Arc::new(known)).await;
        }
        tokio::select! {
            changed = objects.changed() => if changed.is_err() { return },
            changed = nodes.changed() => if changed.is_err() { return },
        }
    }
}

/// `None`: one of both has never been told.
fn known(objects: &Followed<Object>, nodes: &Followed<Node>, handle: &Handle) -> Option<Classes> {
    let labels = node::own(nodes)?.metadata.labels.unwrap_or_default();
    let objects = objects.borrow().clone()?;
    let classes = objects.iter().map(|(name, it)| (name.clone(), class(it)));
    Some(Classes {
        classes: classes.collect(),
        // The others are hearth's own business and change with it.
        labels: labels
            .into_iter()
            .filter(|(key, _)| key != node::LABEL)
            .collect(),
        handlers: handle
            .handlers()
            .into_iter()
            .filter(|it| it.unservable.is_empty())
            .map(|it| it.name)
            .collect(),
    })
}

fn class(object: &Object) -> RuntimeClass {
    let overhead = object
        .overhead
        .as_ref()
        .and_then(|it| it.pod_fixed.as_ref());
    let of = |resource: &str, scale: u32| {
        let quantity = overhead.and_then(|overhead| overhead.get(resource));
        quantity.map_or(0, |Quantity(text)| {
            amount(text, scale).unwrap_or_else(|| {
                warn!(
                    resource,
                    text, "an overhead that is no quantity counts as nothing"
                );
                0
            })
        })
    };
    let scheduling = object.scheduling.as_ref();
    RuntimeClass {
        handler: object.handler.clone(),
        overhead_cpu_millis: of("cpu", 1000),
        overhead_memory_bytes: of("memory", 1),
        node_selector: scheduling
            .and_then(|it| it.node_selector.clone())
            .unwrap_or_default(),
    }
}

/// A quantity as Kubernetes writes it, times `scale`, rounded up; `None`: it is none, or too large.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
#[must_use]
pub fn amount(text: &str, scale: u32) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
    let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
    // Thousandths of the unit: (multiplier, divisor).
    let (times, by): (u128, u128) = match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        exponent => (
            10u128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)?,
            1,
        ),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 12 {
        return None;
    }
    let digits = format!("{whole}{fraction}").parse::<u128>().ok()?;
    let places = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = digits.checked_mul(times)?.checked_mul(scale.into())?;
    u64::try_from(scaled.div_ceil(places.checked_mul(by)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, scale, expected) in [
            ("130Mi", 1, 130 << 20),
            ("250m", 1000, 250),
            ("1", 1000, 1000),
            ("0.1", 1000, 100),
            ("1.5", 1000, 1500),
            ("1.5Gi", 1, 3 << 29),
            ("128974848", 1, 128_974_848),
            ("129e6", 1, 129_000_000),
            ("129M", 1, 129_000_000),
            ("100u", 1000, 1),
            (".5", 1000, 500),
            ("0", 1, 0),
        ] {
            assert_eq!(amount(text, scale), Some(expected), "{text}");
        }
        for wrong in [
            "",
            ".",
            "Mi",
            "-1",
            "1X",
            "1.2.3",
            "1e",
            "1e99",
            "9999999999Pi",
        ] {
            assert_eq!(amount(wrong, 1), None, "{wrong}");
        }
    }

    #[test]
    fn a_class_is_handler_overhead_and_selector() {
        let text = include_str!("../../runtimeclasses/kata-clh.yaml");
        let object: Object = serde_norway::from_str(text).unwrap();
        let class = class(&object);
        assert_eq!(class.handler, "kata-clh");
        assert_eq!(class.overhead_memory_bytes, 130 << 20);
        assert_eq!(class.overhead_cpu_millis, 250);
        let selector: Vec<_> = class.node_selector.iter().collect();
        assert_eq!(selector.len(), 1);
        assert_eq!(selector[0].0, "katacontainers.io/kata-runtime");
    }
}
