//! Amounts as Kubernetes writes them: "500m", "512Mi", "1.5", 2.

use crate::kube::amount;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;

/// An amount, as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quantity(pub String);

/// What the API server lets through: [`amount`] reads it, but for what is too large for a number of 64 bits.
const PATTERN: &str = r"^[0-9]{1,15}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$";

impl Quantity {
    /// In thousandths, rounded up; `None`: it is no amount, or too large for any of hearth's.
    #[must_use]
    pub fn thousandths(&self) -> Option<u64> {
        amount(&self.0, 1000)
    }

    /// In whole units, rounded up.
    #[must_use]
    pub fn units(&self) -> Option<u64> {
        amount(&self.0, 1)
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

    /// What the pattern lets through: a unit each, and both ends of its digits.
    #[test]
    fn all_that_the_api_server_lets_through_is_read() {
        for unit in ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"] {
            for number in ["0", "1", "1.5", "999.999"] {
                let quantity = Quantity(format!("{number}{unit}"));
                assert!(quantity.thousandths().is_some(), "{quantity:?}");
                assert!(quantity.units().is_some(), "{quantity:?}");
            }
        }
        assert_eq!(Quantity("1500m".into()).units(), Some(2));
        assert_eq!(Quantity("500m".into()).thousandths(), Some(500));
        assert_eq!(Quantity("999999999999999Ti".into()).units(), None);
    }

    #[test]
    fn a_number_is_an_amount_too() {
        let read: Vec<Quantity> = serde_json::from_str(r#"[2, "2"]"#).unwrap();
        assert_eq!(read[0], read[1]);
        assert!(serde_json::from_str::<Quantity>("1.5").is_err());
    }
}
