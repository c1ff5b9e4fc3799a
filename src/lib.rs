//! blockhaus
