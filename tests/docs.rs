//! What the documentation says is what the program does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockhaus::stack::SpecTable;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The page's text around the tables is written by hand; the tables are the program's own.
#[test]
fn the_tables_of_specs_and_filters_are_the_programs() {
    let mut page = read("docs/specs.md");
    let tables = [
        ("| spec |", SpecTable::builtin().markdown()),
        ("| filter |", SpecTable::builtin().filters_markdown()),
    ];
    for (head, table) in tables {
        let start = page.find(head).unwrap_or_else(|| panic!("the page has no table {head}"));
        let end = page[start..].find("\n\n").map_or(page.len(), |end| start + end + 1);
        if std::env::var_os("BLESS").is_some() {
            page.replace_range(start..end, &table);
            fs::write(root().join("docs/specs.md"), &page).expect("the page can be written");
            continue;
        }
        assert_eq!(
            &page[start..end],
            table,
            "run `BLESS=1 cargo test --test docs` and look at the difference"
        );
    }
}

/// So is the table of keys of the file of `up`.
#[test]
fn the_table_of_keys_is_the_programs() {
    let page = read("docs/config.md");
    let table = blockhaus::config::file::markdown();
    let start = page.find("| in |").expect("the page has the table");
    let end = page[start..].find("\n\n").map_or(page.len(), |end| start + end + 1);
    if std::env::var_os("BLESS").is_some() {
        let blessed = format!("{}{table}{}", &page[..start], &page[end..]);
        return fs::write(root().join("docs/config.md"), blessed).expect("the page can be written");
    }
    assert_eq!(&page[start..end], table, "run `BLESS=1 cargo test --test docs` and look at the difference");
}

/// Every file of `up` in the documentation is right.
#[test]
fn every_configuration_in_the_docs_is_taken() {
    let mut checked = 0;
    for page in ["docs/config.md", "docs/guide.md"] {
        let text = read(page);
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().expect("an end");
            let limits = blockhaus::config::limits::Limits { cpus: 64, page_size: 4096 };
            let config = blockhaus::config::file::parse(page, block, &limits).expect("it is right");
            for device in &config.devices {
                SpecTable::builtin().check(&device.part.disk.spec).expect("its specs are ours");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 4);
}

/// Every line of the README and the guides that starts with `$ blockhaus VERB` names a verb and
/// options that exist.
#[test]
fn every_command_in_the_docs_exists() {
    let mut checked = 0;
    for page in ["README.md", "docs/specs.md", "docs/config.md", "docs/guide.md"] {
        for line in read(page).lines() {
            let line = line.trim_start_matches(['$', '#', ' ']);
            let Some(rest) = line.strip_prefix("blockhaus ").or_else(|| line.strip_prefix("sudo blockhaus "))
            else {
                continue;
            };
            let mut words = rest.split_whitespace().take_while(|word| !word.starts_with('#'));
            let verb = words.next().expect("a verb").to_string();
            let help = Command::new(env!("CARGO_BIN_EXE_blockhaus"))
                .args([verb.as_str(), "--help"])
                .output()
                .expect("the program runs");
            assert!(help.status.success(), "{page}: there is no `blockhaus {verb}`");
            let help = String::from_utf8_lossy(&help.stdout).into_owned();
            for option in words.filter(|word| word.starts_with("--")) {
                let option = option.split('=').next().expect("a name");
                assert!(help.contains(option), "{page}: `blockhaus {verb}` has no {option}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 10, "the docs show only {checked} commands; does this test still find them?");
}

/// Links between our own pages lead somewhere.
#[test]
fn links_between_pages_lead_somewhere() {
    let pages = [
        "README.md",
        "docs/architecture.md",
        "docs/specs.md",
        "docs/config.md",
        "docs/guide.md",
        "docs/nbd.md",
        "docs/decisions/README.md",
    ];
    for page in pages {
        let folder = root().join(page).parent().expect("a folder").to_path_buf();
        for (at, _) in read(page).match_indices("](") {
            let text = read(page);
            let target = text[at + 2..].split(')').next().unwrap_or_default().to_string();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") {
                assert!(folder.join(file).exists(), "{page} links to {target}, which is not there");
            }
        }
    }
}

/// Every cell of ours in the tables of NBD's page names a test, and so does what else is said there; each of them exists.
#[test]
fn what_is_said_of_nbd_has_tests() {
    let page = read("docs/nbd.md");
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let ours = row.split('|').nth(2).expect("a column of ours").trim();
        let is_head = ours == "blockhaus" || ours == "---";
        assert!(is_head || ours == "✗" || ours.contains("::"), "no test shows this: {row}");
    }
    let mut checked = 0;
    for name in page.split('`').skip(1).step_by(2).filter(|code| code.contains("::")) {
        let (file, test) = name.rsplit_once("::").expect("it contains one");
        let file = file.replace("::", "/");
        let places = [format!("tests/{file}.rs"), format!("tests/{file}/main.rs"), format!("src/{file}.rs")];
        let found = places.iter().filter_map(|place| fs::read_to_string(root().join(place)).ok());
        let words = [format!("fn {test}("), format!("mod {test};"), format!(" {test}_0 ")];
        let is_there = |text: &String| words.iter().any(|word| text.contains(word));
        assert!(found.clone().any(|text| is_there(&text)), "there is no test {name}");
        checked += 1;
    }
    assert!(checked >= 25, "the page names only {checked} tests; does this test still find them?");
}
