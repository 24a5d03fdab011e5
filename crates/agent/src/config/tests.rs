use std::fs;

use super::*;

const MINIMAL: &str = "trustDomain: example.org\nnodeName: node-1\n";

const FULL: &str = "nodeName: node-2\ntrustDomain: example.org\nkubeletRoot: /data\ndrivers: [{name: a.example}]\n\
    mounterSocket: /x\nhttp: {address: \"[::1]:1\"}\nlog: {format: text, level: debug}\n";

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let args = Args {
        node_name: Some("flag".into()),
        mounter_socket: Some("/m".into()),
        kubelet_root: Some("/k".into()),
        drivers: vec!["d".into(), "e".into()],
        http_address: Some("[::1]:7".into()),
        log_format: Some("json".into()),
        log_level: Some("trace".into()),
        ..Args::default()
    };
    let config = parse(FULL, Path::new("x"), &args, Some("environment")).unwrap();
    assert_eq!(config.node_name, "flag");
    let names: Vec<_> = config.drivers.iter().map(|driver| driver.as_str()).collect();
    assert_eq!(names, ["d", "e"]);
    assert_eq!(config.kubelet_root, Path::new("/k"));
    assert_eq!(config.mounter_socket, Path::new("/m"));
    assert_eq!(config.http, Some("[::1]:7".parse().unwrap()));
    assert_eq!(config.log, Log { format: LogFormat::Json, level: LogLevel::Trace });
    let config = parse(FULL, Path::new("x"), &Args::default(), Some("environment")).unwrap();
    assert_eq!(config.node_name, "environment");
    let config = parse(FULL, Path::new("x"), &Args::default(), Some("")).unwrap();
    assert_eq!(config.node_name, "node-2");
}

#[test]
fn a_wrong_flag_is_named_as_a_flag() {
    let args = Args {
        kubelet_root: Some("kubelet".into()),
        http_address: Some("nowhere".into()),
        log_level: Some("loud".into()),
        ..Args::default()
    };
    let Err(ConfigError::Invalid(seamount_api::agent::ConfigError::Invalid(problems))) =
        parse(MINIMAL, Path::new("x"), &args, None)
    else {
        panic!("accepted")
    };
    let fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
    let mut fields = fields;
    fields.sort_unstable();
    assert_eq!(fields, ["--http-address", "--kubelet-root", "--log-level"]);
}

#[test]
fn args_are_those_of_the_brief() {
    let args = Args::parse([
        "--config",
        "/c",
        "--node-name",
        "n",
        "--mounter-socket",
        "/m",
        "--kubelet-root",
        "/k",
        "--driver",
        "d",
        "--driver",
        "e",
        "--http-address",
        "[::1]:7",
        "--health-socket",
        "/h",
        "--uid",
        "64203",
        "--log-format",
        "json",
        "--log-level",
        "debug",
    ]);
    let args = args.unwrap();
    assert_eq!(args.config.as_deref(), Some(Path::new("/c")));
    assert_eq!(args.log_level.as_deref(), Some("debug"));
    assert_eq!(args.node_name.as_deref(), Some("n"));
    assert_eq!(args.mounter_socket.as_deref(), Some("/m"));
    assert_eq!(args.kubelet_root.as_deref(), Some("/k"));
    assert_eq!(args.drivers, ["d", "e"]);
    assert_eq!(args.http_address.as_deref(), Some("[::1]:7"));
    assert_eq!(args.health_socket.as_deref(), Some("/h"));
    assert_eq!(args.uid, Some(64203));
    assert_eq!(args.log_format.as_deref(), Some("json"));
    assert_eq!(Args::parse(["--node-name=n"]).unwrap().node_name.as_deref(), Some("n"));
    assert_eq!(Args::parse([""; 0]).unwrap(), Args::default());
}

#[test]
fn args_are_refused_with_their_names() {
    for (args, named) in [
        (&["--token", "x"][..], "--token"),
        (&["stray"], "stray"),
        (&["--node-name"], "--node-name"),
        (&["--log-level", "info", "--log-level", "debug"], "--log-level"),
        (&["--config", "a", "--config", "b"], "--config"),
        (&["--uid", "1", "--uid", "2"], "--uid"),
        (&["--uid", "nobody"], "nobody"),
    ] {
        let error = Args::parse(args).unwrap_err().to_string();
        assert!(error.contains(named), "{args:?}: {error}");
    }
}

#[test]
fn the_usage_names_every_flag() {
    assert_eq!(Args::parse(["--help"]).unwrap_err().to_string(), USAGE);
    assert!(Args::parse(["-V"]).unwrap_err().to_string().starts_with("seamount-agent "));
    for line in USAGE.lines().filter(|line| line.starts_with("      --")) {
        let flag = line.split_whitespace().next().unwrap();
        let error = Args::parse([flag]).unwrap_err();
        assert!(error.to_string().contains("missing argument"), "{flag}: {error}");
    }
    assert_eq!(USAGE.matches("      --").count(), 10);
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let read = |path: PathBuf| {
        let args = Args { config: Some(path), ..Args::default() };
        load(&args, None).map_err(|e| e.to_string())
    };
    let file = dir.path().join("agent.yaml");
    assert!(read(file.clone()).unwrap_err().contains("No such file"));
    assert!(read(dir.path().to_owned()).unwrap_err().contains("not a regular file"));
    fs::write(&file, " ".repeat(300_000)).unwrap();
    assert!(read(file.clone()).unwrap_err().contains("300000 bytes"));
    fs::write(&file, [0xff, 0xfe, 0xff]).unwrap();
    assert!(read(file.clone()).unwrap_err().contains("UTF-8"));
    for text in ["a: [", "a: 1\na: 2", "- a", "text", "a: *b", "a: !!binary x", "a: 1\n---\na: 2"] {
        fs::write(&file, text).unwrap();
        let error = read(file.clone()).unwrap_err();
        assert!(error.contains("not valid YAML") || error.contains("is not known"), "{text:?}: {error}");
        assert!(error.contains("agent.yaml") || error.contains("is not known"), "{text:?}: {error}");
    }
    fs::write(&file, MINIMAL).unwrap();
    assert!(read(file).is_ok());
}
