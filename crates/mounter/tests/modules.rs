//! The mounter's modules know each other in one direction: no circle of `use crate::…`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Uses = BTreeMap<String, BTreeSet<String>>;

/// By module (`volume::scan`), the modules that its file imports.
fn uses(directory: &Path, prefix: &str, out: &mut Uses) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            uses(&path, &format!("{prefix}{stem}::"), out);
        } else if stem != "tests" {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let imports = code.split("crate::").skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
                rest[..end.unwrap_or(rest.len())].to_owned()
            });
            out.entry(format!("{prefix}{stem}")).or_default().extend(imports);
        }
    }
}

/// A circle, as the modules on it.
fn circle(all: &Uses) -> Option<Vec<String>> {
    fn walk(all: &Uses, at: &str, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if way.iter().any(|before| before == at) {
            way.push(at.to_owned());
            return true;
        }
        if done.contains(at) {
            return false;
        }
        way.push(at.to_owned());
        for import in all.get(at).into_iter().flatten() {
            // `node::Node` is of the module `node`, `volume::scan::MAX` of `volume::scan`.
            let of = |name: &&String| import == *name || import.starts_with(&format!("{name}::"));
            let module = all.keys().filter(of).max_by_key(|name| name.len());
            if module.is_some_and(|module| module != at && walk(all, module, way, done)) {
                return true;
            }
        }
        way.pop();
        done.insert(at.to_owned());
        false
    }
    let mut done = BTreeSet::new();
    all.keys().find_map(|name| {
        let mut way = Vec::new();
        walk(all, name, &mut way, &mut done).then_some(way)
    })
}

#[test]
fn the_modules_have_no_circle() {
    let mut all = Uses::new();
    uses(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    // `use crate::{…}` would not be seen.
    assert!(all.values().flatten().all(|import| !import.is_empty()), "{all:#?}");
    assert!(all["server"].iter().any(|import| import.starts_with("node")), "{all:#?}");
    assert_eq!(circle(&all), None);
}

#[test]
fn a_circle_is_found() {
    let uses = |list: &[(&str, &[&str])]| -> Uses {
        list.iter().map(|(a, b)| ((*a).to_owned(), b.iter().map(|b| (*b).to_owned()).collect())).collect()
    };
    let straight = uses(&[("a", &["b::B", "c"]), ("b", &["c::x::Y"]), ("c", &[]), ("c::x", &["c"])]);
    assert_eq!(circle(&straight), None);
    let round = uses(&[("a", &["b::B"]), ("b", &["c::x::Y"]), ("c", &[]), ("c::x", &["a::A"])]);
    assert_eq!(circle(&round).unwrap(), ["a", "b", "c::x", "a"]);
}
