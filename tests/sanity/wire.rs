//! Encoded messages and what is done to them, by field path. The descriptors say which number a name has.

use super::table::Mutation;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;

/// A value that no enum of hearth has.
const UNKNOWN_ENUM: u64 = 99;
/// Larger than any service takes.
const OVERSIZED_BYTES: usize = 9 << 20;
/// A field number that no message of hearth has.
const UNKNOWN_FIELD: u32 = 9999;

/// The protos of hearth.v1.
pub struct Protos {
    messages: BTreeMap<String, DescriptorProto>,
    /// "Service/Method" → full name of its request.
    rpcs: BTreeMap<String, String>,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    /// Of eight bytes.
    Fixed64(Vec<u8>),
    Bytes(Vec<u8>),
    /// Of four bytes.
    Fixed32(Vec<u8>),
}

enum Edit {
    Remove,
    Set(Value),
}

impl Protos {
    pub fn load() -> Self {
        let set = FileDescriptorSet::decode(hearth::api::FILE_DESCRIPTOR_SET).unwrap();
        let mut protos = Protos {
            messages: BTreeMap::new(),
            rpcs: BTreeMap::new(),
        };
        for file in set.file {
            let package = file.package().to_owned();
            for message in file.message_type {
                protos.add_message(format!(".{package}"), message);
            }
            for service in file.service.iter().filter(|_| package == "hearth.v1") {
                for method in &service.method {
                    let name = format!("{}/{}", service.name(), method.name());
                    protos.rpcs.insert(name, method.input_type().to_owned());
                }
            }
        }
        protos
    }

    fn add_message(&mut self, scope: String, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in message.nested_type.clone() {
            self.add_message(name.clone(), nested);
        }
        self.messages.insert(name, message);
    }

    /// Every RPC.
    pub fn rpcs(&self) -> Vec<String> {
        self.rpcs.keys().cloned().collect()
    }

    /// Paths of the fields of an RPC's (first) request, and whether each is an enum.
    pub fn fields(&self, rpc: &str) -> Vec<(String, bool)> {
        let message = &self.messages[&self.rpcs[rpc]];
        let of = |prefix: &str, field: &FieldDescriptorProto| {
            (
                format!("{prefix}{}", field.name()),
                field.r#type() == Type::Enum,
            )
        };
        let Some(start) = message.field.iter().find(|field| field.name() == "start") else {
            return message.field.iter().map(|field| of("", field)).collect();
        };
        let inner = &self.messages[start.type_name()];
        let mut fields = vec![of("", start)];
        fields.extend(inner.field.iter().map(|field| of("start.", field)));
        fields
    }

    /// The messages of a request after the mutation.
    pub fn mutate(
        &self,
        rpc: &str,
        whole: Vec<Vec<u8>>,
        mutation: Mutation,
        stale_epoch: u64,
    ) -> Vec<Vec<u8>> {
        let (path, edit) = match mutation {
            Mutation::Valid | Mutation::Cancelled | Mutation::ShortDeadline => return whole,
            Mutation::Garbage => return vec![vec![0xff; 16]],
            Mutation::Nothing => return Vec::new(),
            Mutation::Oversized => return vec![oversized(whole)],
            Mutation::Without(path) => (path, Edit::Remove),
            Mutation::UnknownEnum(path) => (path, Edit::Set(Value::Varint(UNKNOWN_ENUM))),
            Mutation::Text(path, text) => (path, Edit::Set(Value::Bytes(text.into()))),
            Mutation::Long(path, bytes) => (path, Edit::Set(Value::Bytes(vec![b'a'; bytes]))),
            Mutation::Number(path, number) => (path, Edit::Set(Value::Varint(number))),
            Mutation::StaleEpoch(path) => (path, Edit::Set(Value::Varint(stale_epoch))),
        };
        let mut messages = whole;
        let path: Vec<_> = path.split('.').collect();
        messages[0] = self.edit(&self.rpcs[rpc], &messages[0], &path, &edit);
        messages
    }

    fn edit(&self, message: &str, encoded: &[u8], path: &[&str], edit: &Edit) -> Vec<u8> {
        let fields = &self.messages[message].field;
        let field = fields.iter().find(|field| field.name() == path[0]);
        let field = field.unwrap_or_else(|| panic!("{message} has no field {}", path[0]));
        let number = u32::try_from(field.number()).unwrap();
        let mut parts = split(encoded);
        let first = parts.iter().position(|(at, _)| *at == number);
        let value = match (edit, &path[1..]) {
            (Edit::Remove, []) => {
                parts.retain(|(at, _)| *at != number);
                return join(&parts);
            }
            (Edit::Set(value), []) => value.clone(),
            (edit, rest) => {
                let inner = match first.map(|at| &parts[at].1) {
                    Some(Value::Bytes(inner)) => inner.clone(),
                    _ => Vec::new(),
                };
                Value::Bytes(self.edit(field.type_name(), &inner, rest, edit))
            }
        };
        match first {
            Some(at) => parts[at].1 = value,
            None => parts.push((number, value)),
        }
        join(&parts)
    }
}

fn oversized(whole: Vec<Vec<u8>>) -> Vec<u8> {
    let mut message = whole.into_iter().next().unwrap_or_default();
    message.extend(join(&[(
        UNKNOWN_FIELD,
        Value::Bytes(vec![0; OVERSIZED_BYTES]),
    )]));
    message
}

fn split(mut encoded: &[u8]) -> Vec<(u32, Value)> {
    use prost::encoding::{WireType, decode_key, decode_varint};
    let mut parts = Vec::new();
    while !encoded.is_empty() {
        let (number, kind) = decode_key(&mut encoded).unwrap();
        let mut take = |bytes: usize| {
            let (taken, rest) = encoded.split_at(bytes);
            encoded = rest;
            taken.to_vec()
        };
        let value = match kind {
            WireType::SixtyFourBit => Value::Fixed64(take(8)),
            WireType::ThirtyTwoBit => Value::Fixed32(take(4)),
            WireType::Varint => Value::Varint(decode_varint(&mut encoded).unwrap()),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut encoded).unwrap();
                let (taken, rest) = encoded.split_at(usize::try_from(length).unwrap());
                encoded = rest;
                Value::Bytes(taken.to_vec())
            }
            WireType::StartGroup | WireType::EndGroup => panic!("proto3 has no groups"),
        };
        parts.push((number, value));
    }
    parts
}

fn join(parts: &[(u32, Value)]) -> Vec<u8> {
    use prost::encoding::{WireType, encode_key, encode_varint};
    let mut encoded = Vec::new();
    for (number, value) in parts {
        match value {
            Value::Varint(value) => {
                encode_key(*number, WireType::Varint, &mut encoded);
                encode_varint(*value, &mut encoded);
            }
            Value::Fixed64(bytes) => {
                encode_key(*number, WireType::SixtyFourBit, &mut encoded);
                encoded.extend(bytes);
            }
            Value::Fixed32(bytes) => {
                encode_key(*number, WireType::ThirtyTwoBit, &mut encoded);
                encoded.extend(bytes);
            }
            Value::Bytes(bytes) => {
                encode_key(*number, WireType::LengthDelimited, &mut encoded);
                encode_varint(bytes.len() as u64, &mut encoded);
                encoded.extend(bytes);
            }
        }
    }
    encoded
}
