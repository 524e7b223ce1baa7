//! The program itself, without a cluster.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::process::{Command, Output};

fn soloist(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-soloist")).args(args).output().unwrap()
}

fn text(said: &[u8]) -> String {
    String::from_utf8_lossy(said).into_owned()
}

#[test]
fn the_help_tells_the_exit_codes() {
    let help = soloist(&["--help"]);
    assert!(
        help.status.success() && text(&help.stdout).contains("  5  doctor: something is wrong"),
        "{help:?}"
    );
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&["status", "a", "-A"][..], &["status", "-A", "-n", "a"], &["why"], &["drain"], &["cure"]] {
        assert_eq!(soloist(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn an_api_server_that_is_away_is_exit_code_3() {
    let folder = std::env::temp_dir().join(format!("kubectl-soloist-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let kubeconfig = folder.join("kubeconfig");
    let away = "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], \
                clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {}}]}";
    std::fs::write(&kubeconfig, away).unwrap();
    let file = kubeconfig.to_string_lossy();
    let (missing, none) =
        (soloist(&["status", "--kubeconfig", "/no/such/file"]), soloist(&["status", "--kubeconfig", &file]));
    std::fs::remove_dir_all(&folder).unwrap();
    for said in [missing, none] {
        assert_eq!(said.status.code(), Some(3), "{}", text(&said.stderr));
        assert!(text(&said.stderr).starts_with("error: "), "{}", text(&said.stderr));
    }
}

#[test]
fn shells_complete_it() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&soloist(&["completion", shell]).stdout).contains("doctor"), "{shell}");
    }
}
