//! Figures as people read them.

/// A figure as a person reads it: three digits that say something, and commas.
pub fn shown(value: f64) -> String {
    match value {
        _ if value == 0.0 || value >= 99.95 => thousands(value),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A whole number with commas.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value <= -0.5 { String::from("-") } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_digits_that_say_something() {
        for (value, text) in [
            (0.0, "0"),
            (0.987, "0.99"),
            (12.34, "12.3"),
            (99.96, "100"),
            (999.4, "999"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(shown(value), text);
        }
        assert_eq!(thousands(1000.0), "1,000");
        // A map has differences.
        assert_eq!(
            (thousands(-123.0), thousands(-1234.0), thousands(-0.2)),
            ("-123".into(), "-1,234".into(), "0".into())
        );
    }
}
