//! Finds what a C header declares: enough of C for those that are compared here, and an error for
//! the rest, so that nothing is passed over.

use std::collections::{BTreeMap, BTreeSet};

/// What a header declares.
#[derive(Debug, Default)]
pub struct Header {
    /// `#define`s and enumerators.
    pub numbers: BTreeSet<String>,
    pub structs: Vec<Struct>,
    pub functions: BTreeSet<String>,
}

/// A structure and its fields, those of unnamed unions and structures among them.
#[derive(Debug)]
pub struct Struct {
    pub name: String,
    pub fields: Vec<String>,
}

/// Comments out, continued lines joined.
fn lines(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("/*") {
            out.push(' ');
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("\\\n") {
            2
        } else {
            out.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    out
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The preprocessor directive of a line, without its `#`.
fn directive(line: &str) -> Option<&str> {
    Some(line.trim_start().strip_prefix('#')?.trim_start())
}

/// Names a text `#define`s, and what each stands for.
pub fn defines(text: &str) -> BTreeMap<String, String> {
    let lines = lines(text);
    let defined = lines.lines().filter_map(|line| directive(line)?.strip_prefix("define"));
    defined
        .map(str::trim_start)
        .map(|rest| rest.split_at(rest.find(|c| !word(c)).unwrap_or(rest.len())))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Words and single marks of everything but directives.
fn tokens(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in lines(text).lines().filter(|line| directive(line).is_none()) {
        let mut glue = false;
        for c in line.chars() {
            match out.last_mut() {
                Some(last) if glue && word(c) => last.push(c),
                _ if !c.is_whitespace() => out.push(c.to_string()),
                _ => {}
            }
            glue = word(c);
        }
    }
    out
}

/// The tokens up to `close`, the opening one being behind us, and what follows it.
fn enclosed<'a>(tokens: &'a [String], close: &str) -> Result<(&'a [String], &'a [String]), String> {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.as_str() {
            t if depth == 0 && t == close => return Ok((&tokens[..i], &tokens[i + 1..])),
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
    }
    Err(format!("no {close}"))
}

/// Everything a header declares.
pub fn header(text: &str) -> Result<Header, String> {
    let mut found = Header { numbers: defines(text).into_keys().collect(), ..Header::default() };
    let tokens = tokens(text);
    let mut rest = tokens.as_slice();
    while let [first, tail @ ..] = rest {
        rest = match (first.as_str(), tail) {
            ("struct", [name, open, body @ ..]) if open == "{" => {
                let (body, after) = enclosed(body, "}")?;
                let mut fields = Vec::new();
                read_fields(body, &mut fields).map_err(|e| format!("struct {name}: {e}"))?;
                found.structs.push(Struct { name: name.clone(), fields });
                semicolon(after)?
            }
            ("enum", [open, body @ ..]) | ("enum", [_, open, body @ ..]) if open == "{" => {
                let (body, after) = enclosed(body, "}")?;
                read_enumerators(body, &mut found.numbers)?;
                semicolon(after)?
            }
            ("static", tail) => {
                let open = tail.iter().position(|t| t == "(").ok_or("static that is no function")?;
                let name = open.checked_sub(1).ok_or("a function without a name")?;
                found.functions.insert(tail[name].clone());
                let (_, after) = enclosed(&tail[open + 1..], ")")?;
                match after {
                    [open, body @ ..] if open == "{" => enclosed(body, "}")?.1,
                    _ => return Err(format!("function {} has no body", tail[name])),
                }
            }
            (other, _) => return Err(format!("cannot read a declaration that begins with {other}")),
        };
    }
    Ok(found)
}

fn semicolon(tokens: &[String]) -> Result<&[String], String> {
    match tokens {
        [mark, rest @ ..] if mark == ";" => Ok(rest),
        other => Err(format!("a ; should stand before {:?}", other.first())),
    }
}

fn read_fields(mut body: &[String], fields: &mut Vec<String>) -> Result<(), String> {
    while let [first, tail @ ..] = body {
        if let ("union" | "struct", [open, inner @ ..]) = (first.as_str(), tail)
            && open == "{"
        {
            let (inner, after) = enclosed(inner, "}")?;
            body = match after {
                [mark, rest @ ..] if mark == ";" => {
                    read_fields(inner, fields)?;
                    rest
                }
                _ => return Err("a named inner structure".to_owned()),
            };
            continue;
        }
        let (declaration, after) = enclosed(body, ";")?;
        body = after;
        let types = if matches!(first.as_str(), "struct" | "unsigned") { 2 } else { 1 };
        for declarator in declaration.get(types..).unwrap_or_default().split(|t| t == ",") {
            match declarator {
                [name] => fields.push(name.clone()),
                [name, open, .., close] if open == "[" && close == "]" => fields.push(name.clone()),
                other => return Err(format!("cannot read the field {}", other.join(" "))),
            }
        }
    }
    Ok(())
}

fn read_enumerators(mut body: &[String], numbers: &mut BTreeSet<String>) -> Result<(), String> {
    while let [name, rest @ ..] = body {
        numbers.insert(name.clone());
        let mut depth = 0;
        let comma = rest.iter().position(|token| {
            match token.as_str() {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            depth == 0 && token == ","
        });
        body = comma.map_or(&[], |comma| &rest[comma + 1..]);
    }
    Ok(())
}
