//! Floats that JSON has no number for: `serde_json` would write `null` in their place.

use serde::ser::{self, Serialize, Serializer};
use std::fmt;

/// A float that is infinite or no number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NotFinite(f64);

impl fmt::Display for NotFinite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JSON has no number for {}", self.0)
    }
}

impl std::error::Error for NotFinite {}

impl ser::Error for NotFinite {
    /// Whatever else is wrong with a value, whoever writes it finds out.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(0.0)
    }
}

/// Looks at each float of a value, and writes nothing.
///
/// # Errors
/// The first one that isn't finite.
pub(super) fn check(value: &(impl Serialize + ?Sized)) -> Result<(), NotFinite> {
    match value.serialize(Floats) {
        Err(found) if !found.0.is_finite() => Err(found),
        _ => Ok(()),
    }
}

struct Floats;

/// Methods for what holds no floats.
macro_rules! passes {
    ($($method:ident($($type:ty),*);)*) => {
        $(fn $method(self, $(_: $type),*) -> Result<(), NotFinite> { Ok(()) })*
    };
}

/// Methods that begin with something of several parts.
macro_rules! goes_on {
    ($($method:ident($($type:ty),*);)*) => {
        $(fn $method(self, $(_: $type),*) -> Result<Self, NotFinite> { Ok(self) })*
    };
}

impl Serializer for Floats {
    type Ok = ();
    type Error = NotFinite;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    passes! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    goes_on! {
        serialize_seq(Option<usize>);
        serialize_tuple(usize);
        serialize_tuple_struct(&'static str, usize);
        serialize_tuple_variant(&'static str, u32, &'static str, usize);
        serialize_map(Option<usize>);
        serialize_struct(&'static str, usize);
        serialize_struct_variant(&'static str, u32, &'static str, usize);
    }

    fn serialize_f32(self, value: f32) -> Result<(), NotFinite> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), NotFinite> {
        if value.is_finite() { Ok(()) } else { Err(NotFinite(value)) }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotFinite> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotFinite> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotFinite> {
        value.serialize(self)
    }
}

/// The parts of something: elements, or fields with a name.
macro_rules! parts {
    ($($trait:ident::$method:ident($($name:ty)?);)*) => {
        $(impl ser::$trait for Floats {
            type Ok = ();
            type Error = NotFinite;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Result<(), NotFinite> {
                value.serialize(Floats)
            }

            fn end(self) -> Result<(), NotFinite> {
                Ok(())
            }
        })*
    };
}

parts! {
    SerializeSeq::serialize_element();
    SerializeTuple::serialize_element();
    SerializeTupleStruct::serialize_field();
    SerializeTupleVariant::serialize_field();
    SerializeStruct::serialize_field(&'static str);
    SerializeStructVariant::serialize_field(&'static str);
}

impl ser::SerializeMap for Floats {
    type Ok = ();
    type Error = NotFinite;

    /// `serde_json` takes no key that isn't finite.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), NotFinite> {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
        value.serialize(Floats)
    }

    fn end(self) -> Result<(), NotFinite> {
        Ok(())
    }
}
