//! The file of `up`: what is to be served by one process, as TOML.
//!
//! Any text gives a [`Config`] or an error that names the file, the line and the cure. What the
//! keys mean is in [`KEYS`], from which the documentation comes as well.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::Spec;
use super::entrance::{self, Nbd};
use super::keys::{DEVICE, EXPORT, NBD, names};
use super::limits::{Limits, Outside};
use super::section::{Document, Placed, Section};
use crate::error::Result;

pub use super::keys::{KEYS, Key, markdown};

/// Longest file that is looked at.
pub const MAX_LEN: usize = 1 << 20;

/// Longest name of an export, as the NBD protocol has it.
const MAX_EXPORT_NAME: usize = 4096;

/// What a file asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Disks of this machine, in the order of the file.
    pub devices: Vec<At<Device>>,
    /// Disks for the network, in the order of the file.
    pub exports: Vec<At<Export>>,
    /// How the network is served.
    pub nbd: Nbd,
}

/// A part of a file, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The line, from 1.
    pub line: usize,
    /// The part.
    pub part: T,
}

/// What a device and an export have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it is made of.
    pub spec: Spec,
    /// What lies on top of it, the first nearest to the client. A name and keys, no argument.
    pub filters: Vec<Spec>,
    /// Nothing may be written.
    pub read_only: bool,
    /// Bytes in a logical block, where that was asked for.
    pub block_size: Option<u32>,
}

/// A `[[device]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it shows.
    pub disk: Disk,
    /// What shows it, by its name, where that was asked for.
    pub engine: Option<String>,
    /// Its number with its engine, where that was asked for.
    pub id: Option<u32>,
    /// Connections between the kernel's NBD driver and the server, where that was asked for.
    pub connections: Option<u16>,
    /// How long a request may take, in seconds, where that was asked for.
    pub timeout_s: Option<u32>,
    /// How long requests wait for a server, in seconds, where that was asked for.
    pub dead_connection_s: Option<u32>,
    /// Number of queues.
    pub queues: u16,
    /// Requests that each takes at once.
    pub depth: u16,
    /// Whether the kernel looks for partitions.
    pub partition_scan: bool,
    /// The way for the bytes, by its name, where one was asked for.
    pub data_path: Option<String>,
    /// What the load will be like, by its name, where that was said.
    pub load: Option<String>,
    /// How long a queue's thread looks for work before it sleeps, at most, in microseconds.
    pub spin_us: u16,
    /// What NBD clients ask for to get the same disk, where they can.
    pub export: Option<String>,
}

/// An `[[export]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients ask for; the empty name is the default export.
    pub name: String,
    /// What they are told about it.
    pub description: String,
    /// What they get.
    pub disk: Disk,
    /// Number of queues.
    pub queues: u16,
    /// Requests that each takes at once.
    pub depth: u16,
}

/// Reads a file; `name` is what errors call it.
pub fn parse(name: &str, text: &str, limits: &Limits) -> Result<Config> {
    let document = Document { name, text };
    if text.len() > MAX_LEN {
        let why = format!("the file is longer than {MAX_LEN} bytes");
        return Err(document.error(0, why).cure("split it, and have an `up` for each part"));
    }
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let why = error.message().lines().collect::<Vec<_>>().join(", ");
        document
            .error(at, format!("this is not TOML: {why}"))
            .cure("write tables such as [[device]], and key = value, with text in quotes")
    })?;
    let top = Section { document, title: "", at: 0, table: table.get_ref() };
    top.only(&["device", "export", "nbd"])?;
    let mut config = Config::default();
    for section in sections(&top, "device", DEVICE)? {
        config.devices.push(At { line: document.line(section.at), part: device(&section, limits)? });
    }
    for section in sections(&top, "export", EXPORT)? {
        config.exports.push(At { line: document.line(section.at), part: export(&section, limits)? });
    }
    if let Some(value) = top.get("nbd") {
        let table = value.get_ref().as_table().ok_or_else(|| {
            document.error(value.span().start, "nbd is not one table").cure("write [nbd], once")
        })?;
        let nbd = Section { document, title: NBD, at: value.span().start, table };
        config.nbd = entrance::read(&nbd)?;
    }
    together(document, &config)?;
    Ok(config)
}

/// The tables of an array of tables.
fn sections<'t>(top: &Section<'t>, key: &str, title: &'static str) -> Result<Vec<Section<'t>>> {
    let Some(value) = top.get(key) else { return Ok(Vec::new()) };
    let wrong = |at: usize| {
        top.document.error(at, format!("{key} is not a list of tables")).cure(format!("write {title}"))
    };
    let list = value.get_ref().as_array().ok_or_else(|| wrong(value.span().start))?;
    let section = |value: &'t toml::Spanned<DeValue<'t>>| {
        let at = value.span().start;
        let table = value.get_ref().as_table().ok_or_else(|| wrong(at))?;
        let section = Section { document: top.document, title, at, table };
        section.only(&names(title))?;
        Ok(section)
    };
    list.iter().map(section).collect()
}

fn device(section: &Section<'_>, limits: &Limits) -> Result<Device> {
    let id = match section.number("id", "0")? {
        Some(id) => Some(limits.id(id.value).map_err(|outside| section.outside("id", id.at, outside))?),
        None => None,
    };
    let engine = section.text("engine", "\"auto\"")?.map(|text| text.value.to_owned());
    let number = |key: &str, example: &str, of: &dyn Fn(u64) -> std::result::Result<u32, Outside>| {
        let number = section.number(key, example)?;
        let checked = |number: Placed<u64>| {
            of(number.value).map_err(|outside| section.outside(key, number.at, outside))
        };
        number.map(checked).transpose()
    };
    let connections = number("connections", "4", &|wanted| limits.connections(wanted).map(u32::from))?;
    let timeout_s = number("timeout", "30", &|wanted| limits.timeout_s(wanted))?;
    let dead_connection_s =
        number("dead-connection-timeout", "120", &|wanted| limits.dead_connection_s(wanted))?;
    let (queues, depth) = queues(section, limits, 1)?;
    let partition_scan = section.flag("partition-scan")?.unwrap_or(true);
    let data_path = section.text("data-path", "\"auto\"")?.map(|text| text.value.to_owned());
    let load = section.text("for", "\"throughput\"")?.map(|text| text.value.to_owned());
    let spin_us = match section.number("spin-us", "50")? {
        Some(spin) => {
            limits.spin_us(spin.value).map_err(|outside| section.outside("spin-us", spin.at, outside))?
        }
        None => 0,
    };
    let export = section.text("export", "\"disk\"")?.map(|name| export_name(section, name)).transpose()?;
    Ok(Device {
        disk: disk(section, limits)?,
        engine,
        id,
        connections: connections.map(|count| count as u16),
        timeout_s,
        dead_connection_s,
        queues,
        depth,
        partition_scan,
        data_path,
        load,
        spin_us,
        export,
    })
}

/// Number of queues, and requests that each takes at once.
fn queues(section: &Section<'_>, limits: &Limits, usual: u16) -> Result<(u16, u16)> {
    let queues = match section.number("queues", "1")? {
        Some(queues) => {
            limits.queues(queues.value).map_err(|outside| section.outside("queues", queues.at, outside))?
        }
        None => usual,
    };
    let depth = match section.number("depth", "128")? {
        Some(depth) => {
            limits.depth(depth.value).map_err(|outside| section.outside("depth", depth.at, outside))?
        }
        None => 128,
    };
    Ok((queues, depth))
}

fn export(section: &Section<'_>, limits: &Limits) -> Result<Export> {
    let name = export_name(section, section.required_text("name", "\"disk\"")?)?;
    let (queues, depth) = queues(section, limits, limits.export_queues())?;
    let description = section.text("description", "\"the disk of the mail server\"")?;
    let description = match description {
        Some(text) if text.value.len() > MAX_EXPORT_NAME => {
            let why = format!("the description of an export has at most {MAX_EXPORT_NAME} bytes");
            return Err(section.document.error(text.at, why).cure("write a shorter one"));
        }
        text => text.map(|text| text.value.to_owned()).unwrap_or_default(),
    };
    Ok(Export { name, description, disk: disk(section, limits)?, queues, depth })
}

fn export_name(section: &Section<'_>, name: Placed<&str>) -> Result<String> {
    if name.value.len() > MAX_EXPORT_NAME || name.value.chars().any(char::is_control) {
        let why =
            format!("the name of an export has at most {MAX_EXPORT_NAME} bytes and no control character");
        return Err(section.document.error(name.at, why).cure("write a shorter and plainer one"));
    }
    Ok(name.value.to_owned())
}

fn disk(section: &Section<'_>, limits: &Limits) -> Result<Disk> {
    let spec = section.required_text("spec", "\"ram:1G\"")?;
    let block_size = match section.get("block-size").map(|value| value.get_ref().is_str()) {
        None => None,
        Some(true) => section.text("block-size", "4096")?.map(|size| (size.value.to_owned(), size.at)),
        Some(false) => section.number("block-size", "4096")?.map(|size| (size.value.to_string(), size.at)),
    };
    let block_size = match block_size {
        Some((size, at)) => {
            Some(limits.block_size(&size).map_err(|outside| section.outside("block-size", at, outside))?)
        }
        None => None,
    };
    let filters = section.texts("filters", "[\"NAME,key=value\"]")?;
    Ok(Disk {
        spec: parsed(section.document, spec)?,
        filters: filters.into_iter().map(|text| filter(section.document, text)).collect::<Result<_>>()?,
        read_only: section.flag("read-only")?.unwrap_or(false),
        block_size,
    })
}

fn parsed(document: Document<'_>, text: Placed<&str>) -> Result<Spec> {
    text.value.parse().map_err(|error: crate::error::Error| document.error(text.at, error.to_string()))
}

fn filter(document: Document<'_>, text: Placed<&str>) -> Result<Spec> {
    let spec = Spec::filter(text.value)
        .map_err(|error: crate::error::Error| document.error(text.at, error.to_string()))?;
    if spec.arg().is_empty() {
        return Ok(spec);
    }
    let why = format!("the filter {:?} has an argument behind a colon", text.value);
    Err(document.error(text.at, why).cure(format!("write {},key=value", spec.kind())))
}

/// What no part of the file shows by itself.
fn together(document: Document<'_>, config: &Config) -> Result<()> {
    let error = |line: usize, why: String, cure: &str| {
        let what = format!("{}, line {line}", document.name);
        Err(crate::error::Error::invalid(what, why).cure(cure))
    };
    let mut ids = BTreeMap::new();
    for device in &config.devices {
        // What auto takes is not known here: it is one and the same for all of them.
        let engine = device.part.engine.as_deref().unwrap_or("auto");
        if let Some(id) = device.part.id
            && let Some(other) = ids.insert((engine, id), device.line)
        {
            let why = format!("two devices with id {id}, the other one in line {other}");
            return error(device.line, why, "give one of them another id, or none for the lowest free one");
        }
    }
    let of_devices = config.devices.iter().filter_map(|at| Some((at.part.export.as_ref()?, at.line)));
    let of_exports = config.exports.iter().map(|at| (&at.part.name, at.line));
    let mut exports: Vec<(&String, usize)> = of_devices.chain(of_exports).collect();
    exports.sort_by_key(|(_, line)| *line);
    let mut names = BTreeMap::new();
    for (name, line) in &exports {
        if let Some(other) = names.insert(name, line) {
            let why = format!("two exports named {name:?}, the other one in line {other}");
            return error(*line, why, "give one of them another name");
        }
    }
    let mut places = BTreeMap::new();
    for listen in &config.nbd.listen {
        if let Some(other) = places.insert(&listen.part, listen.line) {
            let why = format!("the same place to listen at as in line {other}");
            return error(listen.line, why, "write it once");
        }
    }
    match (exports.first(), config.nbd.listen.first()) {
        (Some((_, line)), None) => {
            let why = "there is an export and nowhere to listen".to_owned();
            error(*line, why, "add listen = [\"unix:/run/blockhaus/nbd.sock\"] under [nbd]")
        }
        // With a device it is a place for exports to come.
        (None, Some(listen)) if config.devices.is_empty() => {
            let why = "there is a place to listen at and no export".to_owned();
            error(listen.line, why, "add an [[export]] with a name and a spec")
        }
        (None, None) if config.devices.is_empty() => {
            let why = "there is nothing to serve".to_owned();
            error(1, why, "add a [[device]] with a spec, for example spec = \"ram:1G\"")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::entrance::Listen;

    const LIMITS: Limits = Limits { cpus: 4, page_size: 4096 };

    fn read(text: &str) -> Config {
        parse("x.toml", text, &LIMITS).unwrap()
    }

    fn error(text: &str) -> String {
        parse("x.toml", text, &LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn every_key_has_its_place() {
        let config = read(
            "[[device]]\nspec = \"file:/a.img,direct=no\"\nid = 7\nqueues = 2\ndepth = 0x40\nengine = \"nbd\"\nconnections = 4\ntimeout = 5\nblock-size = \"4K\"\n\
             read-only = true\npartition-scan = false\ndata-path = \"copy\"\nfilters = [\"throttle,iops=1000\", \"log\"]\n\
             export = \"both\"\n\
             [[device]]\nspec = \"ram:1G\"\n\
             [nbd]\nlisten = [\"unix:/run/a.sock\", \"tcp:[::1]:10809\"]\ninsecure-listen = true\nmax-connections = 7\n\
             [[export]]\nname = \"\"\nspec = \"null:1G\"\nblock-size = 512\nqueues = 3\ndepth = 9\n",
        );
        let [first, second] = &config.devices[..] else { panic!("{config:?}") };
        assert_eq!((first.line, second.line), (1, 15));
        assert_eq!((first.part.engine.as_deref(), first.part.connections), (Some("nbd"), Some(4)));
        assert_eq!((first.part.timeout_s, first.part.dead_connection_s), (Some(5), None));
        assert_eq!((first.part.export.as_deref(), &second.part.export), (Some("both"), &None));
        assert_eq!(first.part.data_path.as_deref(), Some("copy"));
        let disk = &first.part.disk;
        assert_eq!((disk.spec.arg(), disk.read_only, disk.block_size), ("/a.img", true, Some(4096)));
        let filters: Vec<String> = disk.filters.iter().map(Spec::to_string).collect();
        assert_eq!(filters, ["throttle,iops=1000", "log"]);
        let numbers = |device: &Device| (device.id, device.queues, device.depth, device.partition_scan);
        assert_eq!(numbers(&first.part), (Some(7), 2, 64, false));
        assert_eq!(numbers(&second.part), (None, 1, 128, true));
        let export = &config.exports[0].part;
        assert_eq!((export.disk.block_size, export.queues, export.depth), (Some(512), 3, 9));
        assert_eq!((config.nbd.insecure_listen, config.nbd.max_connections), (true, 7));
        let places: Vec<&Listen> = config.nbd.listen.iter().map(|listen| &listen.part).collect();
        let tcp = Listen::Tcp { host: "::1".into(), port: 10809 };
        assert_eq!(places, [&Listen::Unix("/run/a.sock".into()), &tcp]);
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_cure() {
        let export = "[[export]]\nname = \"a\"\nspec = \"ram:1M\"\n";
        for (text, said) in [
            ("", &["line 1", "nothing to serve", "[[device]]"][..]),
            ("[[device]]\nspec = \"ram:1G\"\nquues = 2\n", &["line 3", "\"quues\"", "did you mean queues?"]),
            ("[[device]]\nspec = \"ram:1G\"\nblock_size = 2\n", &["line 3", "did you mean block-size?"]),
            ("[[devices]]\nspec = \"ram:1G\"\n", &["line 1", "\"devices\"", "did you mean device?"]),
            ("[device]\nspec = \"ram:1G\"\n", &["line 1", "write [[device]]"]),
            ("device = [1]\n", &["line 1", "write [[device]]"]),
            ("[[device]]\nid = 1\n", &["line 1", "no spec", "add spec = "]),
            ("[[device]]\nspec = 5\n", &["line 2", "spec is a integer", "spec = \"ram:1G\""]),
            ("[[device]]\nspec = \"1G\"\n", &["line 2", "did you mean ram:1G?"]),
            ("[[device]]\nspec = \"ram:1G\"\nqueues = \"2\"\n", &["line 3", "whole number"]),
            ("[[device]]\nspec = \"ram:1G\"\nqueues = 5\n", &["line 3", "4 CPUs", "write queues = 4"]),
            ("[[device]]\nspec = \"ram:1G\"\ndepth = 0\n", &["line 3", "depth 0", "write depth = 1"]),
            ("[[device]]\nspec = \"ram:1G\"\ndepth = -1\n", &["line 3", "-1", "depth = 128"]),
            ("[[device]]\nspec = \"ram:1G\"\nconnections = 17\n", &["line 3", "17", "connections = 16"]),
            ("[[device]]\nspec = \"ram:1G\"\nid = 1048576\n", &["line 3", "1048576", "leave id out"]),
            (
                "[[device]]\nspec = \"ram:1G\"\nblock-size = 1000\n",
                &["line 3", "power of two", "block-size = 512 or block-size = 4096"],
            ),
            ("[[device]]\nspec = \"ram:1G\"\nread-only = \"yes\"\n", &["line 3", "true or false"]),
            ("[[device]]\nspec = \"ram:1G\"\nfilters = \"log\"\n", &["line 3", "a list of texts"]),
            ("[[device]]\nspec = \"ram:1G\"\nfilters = [\"log:x\"]\n", &["line 3", "write log,key=value"]),
            (
                "[[device]]\nspec = \"ram:1G\"\nid = 3\n[[device]]\nspec = \"ram:2G\"\nid = 3\n",
                &["line 4", "two devices with id 3", "line 1", "another id"],
            ),
            ("[[device]]\nspec = \"ram:1G\n", &["line 2", "not TOML"]),
            (export, &["line 1", "nowhere to listen", "[nbd]"]),
            ("[nbd]\nlisten = [\"unix:/a\"]\n", &["line 2", "no export"]),
            ("[nbd]\nlisten = [\"ftp:/a\"]\n", &["line 2", "ftp:/a", "unix:PATH, tcp:HOST:PORT"]),
            ("[nbd]\nlisten = [\"tcp:localhost:0\"]\n", &["line 2", "1 to 65535"]),
            ("[nbd]\nlisten = [\"unix:\"]\n", &["line 2", "no path"]),
            ("[nbd]\nlisten = [\"unix:/a\",\n\"unix:/a\"]\n", &["line 3", "line 2", "write it once"]),
            (&export.repeat(2), &["line 4", "two exports named \"a\"", "line 1"]),
            (
                &format!("[[device]]\nspec = \"ram:1M\"\nexport = \"a\"\n{export}"),
                &["line 4", "two exports named \"a\"", "line 1"],
            ),
            ("[[device]]\nspec = \"ram:1M\"\nexport = \"a\"\n", &["line 1", "nowhere to listen"]),
            ("[nbd]\nlisten = [\"unix:/a\"]\nmax-connections = 0\n", &["line 3", "1 to 1024"]),
        ] {
            let error = error(text);
            assert!(error.starts_with("x.toml, line "), "{error}");
            assert!(error.contains("; "), "no cure: {error}");
            for part in said {
                assert!(error.contains(part), "{text:?} does not say {part:?}: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(error(&"#".repeat(MAX_LEN + 1)).contains("longer than"));
    }

    #[test]
    fn the_page_about_the_file_knows_every_key() {
        let page = markdown();
        assert_eq!(page.lines().count(), KEYS.len() + 2);
        for key in KEYS {
            assert!(page.contains(&format!("| `{}` | `{} = ", key.table, key.name)), "{}", key.name);
        }
    }

    /// Pieces that make texts which are nearly right.
    fn pieces() -> impl Strategy<Value = String> {
        let pieces = [
            "[[device]]\n",
            "[[export]]\n",
            "[nbd]\n",
            "[device]\n",
            "spec = ",
            "id = ",
            "queues = ",
            "depth = ",
            "block-size = ",
            "read-only = ",
            "filters = ",
            "name = ",
            "listen = ",
            "\"ram:1G\"",
            "\"a,b=c\"",
            "true",
            "1",
            "-7",
            "99999999999999999999",
            "[",
            "]",
            "\n",
            "\"",
            "\"unix:/x\"",
            "\"tcp:a:1\"",
            "{",
            "}",
            "=",
            ".",
            "0x",
            "1979-05-27",
            "\u{e4}",
            "#",
            "'''",
        ];
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..40)
            .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_text_gives_a_plan_or_an_error(text in ".*") {
            let _ = parse("x.toml", &text, &LIMITS);
        }

        #[test]
        fn what_is_nearly_right_gives_a_plan_or_an_error_with_a_line(text in pieces()) {
            if let Err(error) = parse("x.toml", &text, &LIMITS) {
                prop_assert!(error.to_string().starts_with("x.toml, line "));
            }
        }

        #[test]
        fn what_is_within_the_limits_is_taken(id in 0u32..1 << 20, queues in 1u16..=4, depth in 1u16..=4096) {
            let text = format!("[[device]]\nspec = \"ram:1M\"\nid = {id}\nqueues = {queues}\ndepth = {depth}\n");
            let device = &read(&text).devices[0].part;
            prop_assert_eq!((device.id, device.queues, device.depth), (Some(id), queues, depth));
        }
    }
}
