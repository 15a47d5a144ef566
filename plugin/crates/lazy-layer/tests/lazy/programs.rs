//! What a program needs comes ahead of it. The program is one of this machine, and `ldd` says what it needs; the modules are some that this machine's Python
//! compiles and imports.

use std::collections::BTreeSet;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazy_layer::{BlobSource, Command};

use crate::bed::{Bed, Fault, PATIENCE, Source, ask, asked_for, nid, spans_of};
use crate::making::{Made, Random, Shape, append};

const SPAN: u64 = 64 << 10;
const PROGRAM: &str = "/bin/ls";

/// Libraries of the program as `ldd` prints them: the name that is asked for, and the file.
fn libraries() -> Vec<String> {
    let out = process::Command::new("ldd").arg(PROGRAM).output().unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(|path| path.trim_start_matches('/').to_owned()).collect()
}

fn link(tar: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, name, target).unwrap();
}

/// A layer with these files, so much noise between them that no two are in one span, and links.
fn layer(random: &mut Random, files: &[(&str, Vec<u8>)], links: &[(&str, &str)]) -> Made {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, target) in links {
        link(&mut tar, name, target);
    }
    for (number, (name, content)) in files.iter().enumerate() {
        append(&mut tar, &format!("noise/{number}"), 0o644, &random.bytes(4 * SPAN as usize));
        append(&mut tar, name, 0o755, content);
    }
    append(&mut tar, "noise/last", 0o644, &random.bytes(4 * SPAN as usize));
    let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
    Made::of_tar(tar.into_inner().unwrap(), files, Shape::Gzip, SPAN)
}

/// The spans that were asked for.
fn asked(made: &Made, source: &Source) -> BTreeSet<u32> {
    let counts = asked_for(made, source);
    (0u32..).zip(counts).filter(|(_, count)| *count > 0).map(|(span, _)| span).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn libraries_come_ahead_of_the_program() {
    let mut random = Random::seeded("libraries_come_ahead_of_the_program");
    let libraries = libraries();
    assert!(libraries.len() > 1, "{libraries:?}");
    // As in most images: directories merged below usr, libraries by way of links.
    let below_usr =
        |path: &str| if path.starts_with("usr/") { path.to_owned() } else { format!("usr/{path}") };
    let names: Vec<String> = libraries.iter().map(|path| format!("{}-1.2.3", below_usr(path))).collect();
    let targets: Vec<String> = names.iter().map(|name| name.rsplit('/').next().unwrap().to_owned()).collect();
    let links: Vec<String> = libraries.iter().map(|path| below_usr(path)).collect();
    let mut all_links: Vec<(&str, &str)> = vec![("lib", "usr/lib"), ("lib64", "/usr/lib64")];
    all_links.extend(links.iter().zip(&targets).map(|(link, target)| (link.as_str(), target.as_str())));
    let contents = libraries.iter().map(|path| std::fs::read(format!("/{path}")).unwrap());
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(String::as_str).zip(contents).collect();
    let lower = layer(&mut random, &files, &all_links);
    let upper = layer(&mut random, &[("usr/bin/program", std::fs::read(PROGRAM).unwrap())], &[]);

    let bed = Bed::new();
    let (below, below_source, _below) = bed.lazy(&lower);
    let (above, _, _above) = bed.lazy(&upper);
    bed.store.starts(&[Arc::clone(&above), Arc::clone(&below)]);
    assert!(below_source.asked.lock().is_empty());
    ask(&above, nid(&above, "usr/bin/program"), 0, 4096).wait().unwrap();

    let needed: BTreeSet<u32> = names.iter().flat_map(|name| spans_of(&lower, name)).collect();
    wait_until("a library was not asked for", || needed.is_subset(&asked(&lower, &below_source)));
    for name in &names {
        let content = crate::bed::read(&below, name).unwrap();
        assert_eq!(
            content,
            std::fs::read(format!("/{}", libraries[names.iter().position(|n| n == name).unwrap()])).unwrap()
        );
    }
    // A header may be in the span before its file.
    let around = needed.iter().flat_map(|span| [span.saturating_sub(1), *span]).collect();
    assert!(asked(&lower, &below_source).is_subset(&around), "noise was asked for");
}

#[test]
fn who_reads_everything_starts_nothing() {
    let mut random = Random::seeded("who_reads_everything_starts_nothing");
    let libraries = libraries();
    let contents = libraries.iter().map(|path| std::fs::read(format!("/{path}")).unwrap());
    let files: Vec<(&str, Vec<u8>)> = libraries.iter().map(String::as_str).zip(contents).collect();
    let lower = layer(&mut random, &files, &[]);
    let before = random.bytes(16 * SPAN as usize);
    let program = std::fs::read(PROGRAM).unwrap();
    let upper = layer(&mut random, &[("before", before), ("usr/bin/program", program)], &[]);
    let marker = random.bytes(10_000);
    let marked = layer(&mut random, &[("marker", marker)], &[]);
    let bed = Bed::with(|options| {
        options.max_read_ahead = SPAN;
        options.start_files = vec!["/marker".to_owned()];
    });
    let (below, below_source, _below) = bed.lazy(&lower);
    let (above, _, _above) = bed.lazy(&upper);
    let (other, other_source, _other) = bed.lazy(&marked);
    bed.store.starts(&[Arc::clone(&above), below]);
    for (name, spans) in [("noise/0", 4), ("before", 16), ("noise/1", 4)] {
        for page in 0..spans * SPAN / 4096 {
            ask(&above, nid(&above, name), page * 4096, 4096).wait().unwrap();
        }
    }
    ask(&above, nid(&above, "usr/bin/program"), 0, 4096).wait().unwrap();
    // Looked for by the same thread, after that.
    bed.store.starts(&[other]);
    wait_until("the marker was not asked for", || !other_source.asked.lock().is_empty());
    assert!(below_source.asked.lock().is_empty());
}

#[test]
fn what_every_start_reads_comes_first() {
    let mut random = Random::seeded("what_every_start_reads_comes_first");
    let file = |random: &mut Random| random.bytes(10_000);
    let (a, b, c, d) = (file(&mut random), file(&mut random), file(&mut random), file(&mut random));
    let lower = layer(
        &mut random,
        &[("etc/passwd", a), ("etc/hidden", b), ("opaque/below", c), ("etc/other", d)],
        &[("link", "/etc")],
    );
    let hidden = [("etc/.wh.hidden", Vec::new()), ("opaque/.wh..wh..opq", Vec::new())];
    let upper = layer(&mut random, &hidden, &[]);
    let bed = Bed::with(|options| {
        let files = ["/link/../link/passwd", "/etc/hidden", "/opaque/below", "/not/there", "/etc"];
        options.start_files = files.map(str::to_owned).to_vec();
    });
    let (below, source, _below) = bed.lazy(&lower);
    let (above, _, _above) = bed.lazy(&upper);
    bed.store.starts(&[above, Arc::clone(&below)]);
    let needed: BTreeSet<u32> = spans_of(&lower, "etc/passwd").collect();
    wait_until("it was not asked for", || needed.is_subset(&asked(&lower, &source)));
    // Those behind it were looked for by the same thread, in turn: once more, and all are done.
    bed.store.starts(&[Arc::clone(&below)]);
    let visible: BTreeSet<u32> = spans_of(&lower, "etc/hidden").collect();
    wait_until("alone, the layer hides nothing", || visible.is_subset(&asked(&lower, &source)));
    let other: BTreeSet<u32> = spans_of(&lower, "etc/other").collect();
    assert!(other.is_disjoint(&asked(&lower, &source)));
}

#[test]
fn hidden_files_are_not_fetched() {
    let mut random = Random::seeded("hidden_files_are_not_fetched");
    let (a, b, c) = (random.bytes(10_000), random.bytes(10_000), random.bytes(10_000));
    let lower = layer(&mut random, &[("etc/hidden", a), ("opaque/below", b), ("etc/passwd", c)], &[]);
    let hidden = [("etc/.wh.hidden", Vec::new()), ("opaque/.wh..wh..opq", Vec::new())];
    let upper = layer(&mut random, &hidden, &[]);
    let bed = Bed::with(|options| {
        // The last is asked for after the others were looked for.
        options.start_files = ["/etc/hidden", "/opaque/below", "/etc/passwd"].map(str::to_owned).to_vec();
    });
    let (below, source, _below) = bed.lazy(&lower);
    let (above, _, _above) = bed.lazy(&upper);
    bed.store.starts(&[above, below]);
    let needed: BTreeSet<u32> = spans_of(&lower, "etc/passwd").collect();
    wait_until("it was not asked for", || needed.is_subset(&asked(&lower, &source)));
    for name in ["etc/hidden", "opaque/below"] {
        let spans: BTreeSet<u32> = spans_of(&lower, name).collect();
        assert!(spans.is_disjoint(&asked(&lower, &source)), "{name} is not seen in the container");
    }
}

#[test]
fn who_is_followed_keeps_no_layer_open() {
    let mut random = Random::seeded("who_is_followed_keeps_no_layer_open");
    let content = random.bytes(10_000);
    let made = layer(&mut random, &[("etc/passwd", content)], &[]);
    let bed = Bed::with(|options| options.start_files = vec!["/etc/passwd".to_owned()]);
    let layer = bed.create(&made);
    let source = Source::with(&made.blob, Fault::Hang);
    let attachment = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
    bed.store.starts(&[Arc::clone(&layer)]);
    wait_until("it was not asked for", || !source.asked.lock().is_empty());
    drop(attachment);
    drop(layer);
    // Would wait in vain.
    bed.restart();
}

#[test]
fn a_large_file_is_asked_for_from_both_ends() {
    let mut random = Random::seeded("a_large_file_is_asked_for_from_both_ends");
    let large = random.bytes(9 << 20);
    let made = layer(&mut random, &[("usr/bin/large", large)], &[]);
    let bed = Bed::with(|options| options.likely_files = vec!["/usr/bin/large".to_owned()]);
    let (layer, source, _attached) = bed.lazy(&made);
    bed.store.starts(&[layer]);
    let all: Vec<u32> = spans_of(&made, "usr/bin/large").collect();
    let ends: BTreeSet<u32> = [all[0], all[all.len() - 1]].into();
    wait_until("its ends were not asked for", || ends.is_subset(&asked(&made, &source)));
    // Its header, its beginning, and the last of it.
    let around = [all[0].saturating_sub(1), all[0], all[all.len() - 2], all[all.len() - 1]].into();
    assert!(asked(&made, &source).is_subset(&around), "{:?}", asked(&made, &source));
}

#[test]
fn what_follows_a_program_is_not_guessed() {
    let mut random = Random::seeded("what_follows_a_program_is_not_guessed");
    let (program, text) = (std::fs::read(PROGRAM).unwrap(), random.bytes(10_000));
    let made = layer(&mut random, &[("usr/bin/program", program), ("text", text)], &[]);
    let bed = Bed::with(|options| {
        (options.max_read_ahead, options.max_guesses) = (SPAN, 4);
        options.start_files = vec!["/usr/bin/program".to_owned()];
    });
    let layer = bed.create(&made);
    let source = Source::with(&made.blob, Fault::Hang);
    let _attached = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
    bed.store.starts(&[Arc::clone(&layer)]);
    let program: BTreeSet<u32> = spans_of(&made, "usr/bin/program").collect();
    wait_until("it was not asked for", || program.is_subset(&asked(&made, &source)));
    let behind = |name: &str| spans_of(&made, name).max().unwrap() + 1;
    let reads = ["usr/bin/program", "text"].map(|name| {
        let end = made.files.iter().find(|(path, _)| path == name).unwrap().1.len() as u64;
        ask(&layer, nid(&layer, name), end - 100, 100)
    });
    source.set(Fault::None);
    for read in reads {
        read.wait().unwrap();
    }
    wait_until("nothing was guessed", || asked(&made, &source).contains(&behind("text")));
    assert!(!asked(&made, &source).contains(&behind("usr/bin/program")), "it says itself what it needs");
}

/// Modules of an application, and what is in them.
const MODULES: [(&str, &str); 16] = [
    (
        "dist-packages/app/__init__.py",
        "import base.deep.leaf\nfrom . import first, nothing\nfrom .sub import second as other\nnothing = None\n",
    ),
    ("base/data.txt", "what lies here is not what is meant"),
    ("dist-packages/app/nothing/data.txt", "a directory that is no module of its own"),
    ("dist-packages/app/first.py", "from .third import value\ndef later():\n    import app.unused\n"),
    ("dist-packages/app/third.py", "value = 3\n"),
    ("dist-packages/app/unused.py", "import app.unused_too\n"),
    ("dist-packages/app/unused_too.py", "import nowhere\n"),
    ("dist-packages/app/sub/__init__.py", "from .. import sibling\n"),
    ("dist-packages/app/sub/second.py", "import single\nfrom ..third import value\n"),
    ("dist-packages/app/sibling.py", "try:\n    import not_installed\nexcept ImportError:\n    pass\n"),
    ("dist-packages/base/__init__.py", "# a package\n"),
    ("dist-packages/base/deep/__init__.py", "from . import *\n"),
    ("dist-packages/base/deep/leaf.py", "import base\n"),
    ("dist-packages/base/deep/other.py", "raise SystemError\n"),
    ("dist-packages/single.py", "name = 'single'\n"),
    // The first that is read, and in every case as it was compiled.
    (KNOWN, "import sys\n"),
];
const KNOWN: &str = "known.py";

/// Where they are installed in the image.
const PACKAGES: &str = "usr/lib/python3";

fn python(script: &str, arguments: &[&str]) -> String {
    let out = process::Command::new("python3").args(["-S", "-c", script]).args(arguments).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The modules as files, compiled unless `as_source`, and which of them Python imports with `app`.
fn modules(as_source: bool) -> (Vec<(String, Vec<u8>)>, BTreeSet<String>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    for (name, content) in MODULES {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let compile = "import compileall, sys; compileall.compile_dir(sys.argv[1], ddir=sys.argv[2], quiet=1)";
    python(compile, &[root, &format!("/{PACKAGES}")]);
    let attribute = if as_source { "__file__" } else { "__cached__" };
    let imported = python(
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/dist-packages']; import app\n\
         for module in sys.modules.values():\n    print(getattr(module, sys.argv[2], None))",
        &[root, attribute],
    );
    let imported =
        imported.lines().filter_map(|path| path.strip_prefix(root)).map(|path| format!("{PACKAGES}{path}"));
    let mut files = Vec::new();
    for (name, content) in MODULES {
        let path = folder.path().join(name);
        files.push((format!("{PACKAGES}/{name}"), content.as_bytes().to_vec()));
        let cache = path.parent().unwrap().join("__pycache__");
        let stem = format!("{}.", path.file_stem().unwrap().to_str().unwrap());
        for entry in std::fs::read_dir(cache).into_iter().flatten().filter(|_| !as_source || name == KNOWN) {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().starts_with(&stem) {
                let place = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push((format!("{PACKAGES}/{place}"), std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    (files, imported.collect())
}

/// An application with a script that begins it above, the packages that it stands on below.
fn application(
    random: &mut Random,
    files: &[(String, Vec<u8>)],
    script: (&str, &str),
    links: &[(&str, &str)],
) -> (Made, Made) {
    let (mut above, mut below): (Vec<_>, Vec<_>) =
        files.iter().cloned().partition(|(name, _)| name.contains("/app/"));
    above.push((script.0.to_owned(), script.1.as_bytes().to_vec()));
    let version = python("import sys; print('%d.%d' % sys.version_info[:2])", &[]);
    below.push((format!("usr/bin/python{}", version.trim()), b"an interpreter".to_vec()));
    below.push(("usr/bin/env".to_owned(), b"runs what follows".to_vec()));
    let mut packed = |files: &[(String, Vec<u8>)], links: &[(&str, &str)]| -> Made {
        let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
        layer(random, &files, links)
    };
    (packed(&above, &[]), packed(&below, links))
}

/// Waits until all that is imported was asked for, and looks that nothing else of the application was.
fn only_imported_is_asked_for(imported: &BTreeSet<String>, layers: [(&Made, &Source); 2]) {
    let spans = |made: &Made, names: &dyn Fn(&str) -> bool| -> BTreeSet<u32> {
        let files = made.files.iter().map(|(name, _)| name).filter(|name| names(name));
        files.flat_map(|name| spans_of(made, name)).collect()
    };
    for (made, source) in layers {
        let needed = spans(made, &|name| imported.contains(name));
        wait_until("a module was not asked for", || needed.is_subset(&asked(made, source)));
    }
    for (made, source) in layers {
        let never = spans(made, &|name| name.contains("unused") || name.ends_with("other.py"));
        assert!(never.is_disjoint(&asked(made, source)), "what nobody imports was asked for");
    }
}

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

#[test]
fn what_a_command_line_has_python_run_comes_ahead() {
    let interpreter =
        python("import os, sys; print(os.path.basename(os.path.realpath(sys.executable)))", &[]);
    let links = [("usr/bin/python3", interpreter.trim())];
    for as_source in [false, true] {
        let (files, imported) = modules(as_source);
        for line in [
            &["python3", "-uc", "import sys; import app; print(app)"][..],
            &["env", "-i", "A=b", "python3", "-X", "dev", "-mapp"],
            &["/usr/bin/python3", "main.py", "-c", "import app.unused"],
            &["./run", "app.unused"],
        ] {
            let mut random = Random::seeded("what_a_command_line_has_python_run_comes_ahead");
            let script = match line {
                ["./run", ..] => ("srv/run", "#!/usr/bin/env python3\nimport app\n"),
                _ => ("srv/main.py", "import app\n"),
            };
            let (upper, lower) = application(&mut random, &files, script, &links);
            let bed = Bed::new();
            let (low, low_source, _low) = bed.lazy(&lower);
            let (up, up_source, _up) = bed.lazy(&upper);
            let command = Command { words: words(line), directory: b"/srv".to_vec(), path: None };
            bed.store.runs(&[Arc::clone(&up), Arc::clone(&low)], command);
            only_imported_is_asked_for(&imported, [(&upper, &up_source), (&lower, &low_source)]);
        }
    }
}

#[test]
fn files_that_a_command_line_names_come_ahead() {
    let mut random = Random::seeded("files_that_a_command_line_names_come_ahead");
    let names = ["opt/bin/start", "usr/bin/start", "srv/list", "etc/own.conf", "opt/bin/list", "srv/-v"];
    let contents = names.map(|name| (name, random.bytes(10_000)));
    let made = layer(&mut random, &contents, &[]);
    let bed = Bed::new();
    let (layer, source, _attached) = bed.lazy(&made);
    let command = Command {
        words: words(&["nice", "start", "--", "no-such", "-v", "list", "/srv/../etc/own.conf"]),
        directory: b"/srv".to_vec(),
        path: Some(b"/bin:/opt/bin:/usr/bin".to_vec()),
    };
    bed.store.runs(&[Arc::clone(&layer)], command);
    let spans =
        |names: &[&str]| -> BTreeSet<u32> { names.iter().flat_map(|name| spans_of(&made, name)).collect() };
    // `nice` is not in the image: nothing tells that what follows is a program.
    let named = spans(&["srv/list", "etc/own.conf"]);
    wait_until("a file was not asked for", || named.is_subset(&asked(&made, &source)));
    let others = spans(&["opt/bin/start", "usr/bin/start", "opt/bin/list", "srv/-v"]);
    assert!(others.is_disjoint(&asked(&made, &source)));

    let command = Command {
        words: words(&["start", "list"]),
        directory: b"/".to_vec(),
        path: Some(b"/bin:/opt/bin:/usr/bin".to_vec()),
    };
    let bed = Bed::new();
    let (layer, source, _attached) = bed.lazy(&made);
    bed.store.runs(&[Arc::clone(&layer)], command);
    let named = spans(&["opt/bin/start", "opt/bin/list"]);
    wait_until("a program was not asked for", || named.is_subset(&asked(&made, &source)));
    assert!(spans(&["usr/bin/start", "srv/list"]).is_disjoint(&asked(&made, &source)));
}

#[test]
fn what_is_run_first_comes_first() {
    let mut random = Random::seeded("what_is_run_first_comes_first");
    let interpreter =
        python("import os, sys; print(os.path.basename(os.path.realpath(sys.executable)))", &[]);
    let later: Vec<String> = (0..12).map(|number| format!("later_{number}")).collect();
    let paths: Vec<String> = later.iter().map(|name| format!("srv/{name}.py")).collect();
    let program = format!("usr/bin/{}", interpreter.trim());
    let mut files: Vec<(&str, Vec<u8>)> = vec![
        (&program, b"an interpreter".to_vec()),
        ("srv/first.py", b"import below\n".to_vec()),
        ("srv/below.py", b"import deep\n".to_vec()),
        ("srv/deep.py", b"deep = True\n".to_vec()),
    ];
    files.extend(paths.iter().map(|path| (path.as_str(), b"later = True\n".to_vec())));
    let made = layer(&mut random, &files, &[]);
    // One request at a time, each long enough for what it brings to be looked at.
    let bed = Bed::with(|options| options.max_connections_per_host = 1);
    let layer = bed.create(&made);
    let source = Source::with(&made.blob, Fault::Delay(Duration::from_millis(30)));
    let _attached = layer.attach(Arc::clone(&source) as Arc<dyn BlobSource>);
    let code = format!("import first, {}", later.join(", "));
    bed.store.runs(
        &[Arc::clone(&layer)],
        Command {
            words: words(&[interpreter.trim(), "-c", &code]),
            directory: b"/srv".to_vec(),
            path: Some(b"/usr/bin".to_vec()),
        },
    );
    let all: BTreeSet<u32> = paths.iter().flat_map(|path| spans_of(&made, path)).collect();
    wait_until("a module was not asked for", || all.is_subset(&asked(&made, &source)));
    let place = |name: &str| {
        let span = made.ztoc.spans.span(ztoc::SpanId(*spans_of(&made, name).start())).unwrap();
        let holds = |range: &std::ops::Range<u64>| {
            range.start <= span.compressed.start.0 && range.end >= span.compressed.end.0
        };
        source.asked.lock().iter().position(holds).unwrap()
    };
    for name in ["srv/below.py", "srv/deep.py"] {
        assert!(place(name) < place("srv/later_8.py"), "{name}: {} {}", place(name), place("srv/later_8.py"));
    }
    assert!(place("srv/later_1.py") < place("srv/later_11.py"));
}

#[test]
fn modules_come_ahead_of_their_imports() {
    for as_source in [false, true] {
        let mut random = Random::seeded("modules_come_ahead_of_their_imports");
        let (files, imported) = modules(as_source);
        assert!(imported.len() >= 10, "{imported:?}");
        let script = ("usr/bin/application", "#!/usr/bin/python3 -u\nimport app\n");
        let (upper, lower) = application(&mut random, &files, script, &[]);

        let bed = Bed::new();
        let (low, low_source, _low) = bed.lazy(&lower);
        let (up, up_source, _up) = bed.lazy(&upper);
        bed.store.starts(&[Arc::clone(&up), Arc::clone(&low)]);
        let begins =
            |part: &str| files.iter().find(|(name, _)| name.contains(part) && name.ends_with(".pyc"));
        // Says where modules are.
        ask(&low, nid(&low, &begins("known").unwrap().0), 0, 4096).wait().unwrap();
        let begin = begins("/app/__pycache__/__init__").map_or("usr/bin/application", |(name, _)| name);
        ask(&up, nid(&up, begin), 0, 4096).wait().unwrap();
        only_imported_is_asked_for(&imported, [(&upper, &up_source), (&lower, &low_source)]);
    }
}

#[test]
fn who_names_too_much_is_not_followed_for_ever() {
    let mut random = Random::seeded("who_names_too_much_is_not_followed_for_ever");
    let interpreter =
        python("import os, sys; print(os.path.basename(os.path.realpath(sys.executable)))", &[]);
    let program = format!("usr/bin/{}", interpreter.trim());
    let files: [(&str, Vec<u8>); 2] =
        [(&program, b"an interpreter".to_vec()), ("srv/last.py", b"last = True\n".to_vec())];
    let made = layer(&mut random, &files, &[]);
    let marker = random.bytes(10_000);
    let marked = layer(&mut random, &[("marker", marker)], &[]);
    let others: Vec<String> = (0..1000).map(|number| format!("other_{number}")).collect();
    let code = format!("import {}, last", others.join(", "));
    for (max, is_found) in [(1024, true), (4, false)] {
        let bed = Bed::with(|options| {
            options.max_start_files = max;
            options.start_files = vec!["/marker".to_owned()];
        });
        let (layer, source, _attached) = bed.lazy(&made);
        let (other, other_source, _other) = bed.lazy(&marked);
        let command = Command {
            words: words(&[interpreter.trim(), "-c", &code]),
            directory: b"/srv".to_vec(),
            path: Some(b"/usr/bin".to_vec()),
        };
        bed.store.runs(&[Arc::clone(&layer)], command);
        // Looked for by the same thread, after that.
        bed.store.starts(&[other]);
        wait_until("the marker was not asked for", || !other_source.asked.lock().is_empty());
        let last: BTreeSet<u32> = spans_of(&made, "srv/last.py").collect();
        if is_found {
            wait_until("the last was not asked for", || last.is_subset(&asked(&made, &source)));
        } else {
            assert!(last.is_disjoint(&asked(&made, &source)), "it was looked for without an end");
        }
    }
}
