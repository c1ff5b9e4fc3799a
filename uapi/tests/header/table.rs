//! What we have of a header, under its names, and what one of the two has and the other does not.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::mem::size_of;

use bitflags::Flags;

use super::parse::Header;

/// A structure of ours.
pub struct Struct {
    pub name: &'static str,
    pub size: usize,
    pub align: usize,
    pub fields: Vec<Field>,
}

/// A field of ours.
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
    /// Whether it is a signed integer.
    pub signed: bool,
}

impl Field {
    /// The function does nothing but say what type the field has.
    pub fn new<T, F: 'static>(name: &'static str, offset: usize, _: fn(&T) -> &F) -> Field {
        Field { name, offset, size: size_of::<F>(), signed: TypeId::of::<F>() == TypeId::of::<i32>() }
    }
}

/// An inline function of a header, and its twin of ours.
pub struct Function {
    pub name: &'static str,
    /// A statement of C that sets `r` to what the header's makes of `x`.
    pub c: &'static str,
    /// What ours makes of it.
    pub ours: fn(u64) -> u64,
}

/// Everything we have of a header.
#[derive(Default)]
pub struct Ours {
    /// Name and value; a negative value as 64-bit two's complement.
    pub numbers: Vec<(String, u64)>,
    pub structs: Vec<Struct>,
    pub functions: Vec<Function>,
}

/// Adds constants: a prefix of the header, a module, and the names that follow both.
macro_rules! numbers {
    ($table:ident, $prefix:literal, $($module:ident)::+: $($name:ident)+) => {{
        use $($module ::)+ *;
        $($table.push((concat!($prefix, stringify!($name)).to_owned(), i128::from($name) as u64));)+
    }};
}
pub(super) use numbers;

/// Describes a structure, whose fields begin with the prefix in the header; `other = field` is a name that does not
/// begin so, or a second one in the header's union.
macro_rules! structure {
    ($c:literal = $ty:ident $prefix:literal { $($field:ident)+ $(; $($other:ident = $of:ident)+)? }) => {
        Struct {
            name: $c,
            size: std::mem::size_of::<$ty>(),
            align: std::mem::align_of::<$ty>(),
            fields: vec![
                $(Field::new(
                    concat!($prefix, stringify!($field)),
                    std::mem::offset_of!($ty, $field),
                    |s: &$ty| &s.$field,
                ),)+
                $($(Field::new(stringify!($other), std::mem::offset_of!($ty, $of), |s: &$ty| &s.$of),)+)?
            ],
        }
    };
    ($c:literal = $ty:ident { $($fields:tt)+ }) => { structure!($c = $ty "" { $($fields)+ }) };
}
pub(super) use structure;

/// Every flag of a type, under the header's prefix.
pub fn flags<F: Flags<Bits: Into<u64>>>(prefix: &str) -> impl Iterator<Item = (String, u64)> {
    let named = F::FLAGS.iter().filter(|flag| flag.is_named());
    named.map(move |flag| (format!("{prefix}{}", flag.name()), flag.value().bits().into()))
}

/// What the header has and we do not, and the other way round.
pub fn incomplete(header: &Header, ours: &Ours) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, theirs: BTreeSet<String>, ours: BTreeSet<String>| {
        wrong.extend(theirs.difference(&ours).map(|name| format!("{what} {name} is not in our table")));
        wrong.extend(ours.difference(&theirs).map(|name| format!("{what} {name} is not in the header")));
    };
    compare("number", header.numbers.clone(), ours.numbers.iter().map(|(name, _)| name.clone()).collect());
    compare("function", header.functions.clone(), ours.functions.iter().map(|f| f.name.to_owned()).collect());
    compare(
        "structure",
        header.structs.iter().map(|s| s.name.clone()).collect(),
        ours.structs.iter().map(|s| s.name.to_owned()).collect(),
    );
    compare(
        "field",
        header.structs.iter().flat_map(|s| s.fields.iter().map(|f| format!("{}.{f}", s.name))).collect(),
        ours.structs.iter().flat_map(|s| s.fields.iter().map(|f| format!("{}.{}", s.name, f.name))).collect(),
    );
    wrong
}
