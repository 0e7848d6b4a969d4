//! Amounts as Kubernetes writes them: "500m", "512Mi", "1.5", 2.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;

/// An amount, as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quantity(pub String);

/// What the API server lets through; [`Quantity::thousandths`] reads all of it.
const PATTERN: &str = r"^[0-9]{1,15}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$";

impl Quantity {
    /// In thousandths; `None`: it is no amount, or too large for any of hearth's.
    #[must_use]
    pub fn thousandths(&self) -> Option<u64> {
        let text = self.0.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let factor: u64 = match unit {
            "m" => 1,
            "" => 1000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "Ki" => 1000 << 10,
            "Mi" => 1000 << 20,
            "Gi" => 1000 << 30,
            "Ti" => 1000 << 40,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || part.len() > 3 {
            return None;
        }
        let part: u64 = format!("{part:0<3}").parse().ok()?;
        let whole: u64 = whole.parse().ok()?;
        // Rounded up, as Kubernetes does.
        let part = part.checked_mul(factor)?.div_ceil(1000);
        whole.checked_mul(factor)?.checked_add(part)
    }

    /// In whole units, rounded up.
    #[must_use]
    pub fn units(&self) -> Option<u64> {
        Some(self.thousandths()?.div_ceil(1000))
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Text(String),
        }
        Ok(Self(match Written::deserialize(from)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        }))
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true, "pattern": PATTERN})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        let read = |text: &str| Quantity(text.into()).thousandths();
        assert_eq!(read("500m"), Some(500));
        assert_eq!(read("2"), Some(2000));
        assert_eq!(read("1.5"), Some(1500));
        assert_eq!(read("0.0015k"), None, "more than three digits");
        assert_eq!(read("512Mi"), Some(1000 * (512 << 20)));
        assert_eq!(read("1.5Gi"), Some(1500 * (1 << 30)));
        assert_eq!(read("1G"), Some(1_000_000_000_000));
        assert_eq!(Quantity("1500m".into()).units(), Some(2));
        for wrong in ["", "m", "-1", "1e3", "1Xi", ".5", "1.2.3", "99999999999Ti"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_number_is_an_amount_too() {
        let read: Vec<Quantity> = serde_json::from_str(r#"[2, "2"]"#).unwrap();
        assert_eq!(read[0], read[1]);
        assert!(serde_json::from_str::<Quantity>("1.5").is_err());
    }
}
