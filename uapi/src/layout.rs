//! Compile-time proof that a structure lies in memory as the kernel's does.

/// Asserts the size of a structure and the offset of each of its fields, and that the fields
/// named leave no byte uncovered.
macro_rules! layout {
    ($ty:ident, $size:literal, { $($field:ident @ $offset:literal: $fty:ty),+ $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$ty>() == $size);
            $(assert!(core::mem::offset_of!($ty, $field) == $offset);)+
            assert!(0 $(+ core::mem::size_of::<$fty>())+ == $size);
            // The types written in the assertion are the types of the fields.
            const fn _same(value: &$ty) {
                $(let _: &$fty = &value.$field;)+
            }
        };
    };
}
