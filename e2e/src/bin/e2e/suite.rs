//! Running `cargo test`, and counting.

use std::ffi::OsStr;
use std::ops::AddAssign;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use e2e::cluster::Cluster;
use e2e::newer_rabbitmq::NewerRabbit;
use e2e::servers::{Servers, Settings};
use e2e::{command, go_tools::GoTools, netns, paths, progress::Progress};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A cold build of the whole workspace takes about 10 minutes on two cores.
const BUILD: Duration = Duration::from_secs(45 * 60);
/// Each test on the cluster has a deadline of its own; this is for the case that one ignores it.
const TESTS: Duration = Duration::from_secs(45 * 60);
/// Where more tests than this fail, trying them again would only take time.
const AGAIN_AT_MOST: usize = 3;

/// Which tests to run.
pub(crate) struct Suite {
    pub(crate) filter: Option<String>,
    pub(crate) skip: Vec<String>,
}

/// How many tests passed, how many failed and which, and whether cargo itself was content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// The names of those that failed. A program that died says none.
    pub(crate) failing: Vec<String>,
    /// The names of those that failed, and passed when they were tried again.
    pub(crate) unsteady: Vec<String>,
    /// Test programs that began, without those that came to an end.
    open: i32,
    pub(crate) broken: bool,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failing.extend(other.failing);
        self.unsteady.extend(other.unsteady);
        self.open += other.open;
        self.broken |= other.broken;
    }
}

impl Counts {
    /// Whether there are failures, few enough to try them again, each has a name, and nothing else went wrong.
    fn can_try_again(&self) -> bool {
        let named = self.failing.len();
        (1..=AGAIN_AT_MOST).contains(&named) && u32::try_from(named) == Ok(self.failed) && self.open == 0
    }
}

impl Suite {
    /// Builds all tests while there still is a network to fetch with.
    pub(crate) async fn build(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("cargo test --no-run");
        let mut build = cargo(netns::Namespace::of_the_machine().command("cargo"));
        build.args(["test", "--workspace", "--no-run"]);
        command::watch(&mut build, BUILD, |line| step.note(line)).await?;
        step.done("");
        Ok(())
    }

    /// The tests that need nothing, with those in the documentation.
    pub(crate) async fn alone(&self) -> Result<Counts> {
        let mut tests = cargo(netns::Namespace::of_the_machine().command("cargo"));
        tests.args(["test", "--workspace", "--no-fail-fast"]);
        self.run(tests, &self.filter).await
    }

    /// The tests that are ignored otherwise, inside of the cluster's network. Examples in the documentation that are
    /// marked as ignored are not meant to be run at all.
    pub(crate) async fn on_cluster(
        &self,
        cluster: &Cluster,
        python: &Path,
        exporter: &Path,
    ) -> Result<Counts> {
        let helm = GoTools::built()?.program("helm");
        let tests = || {
            let mut tests = cargo(cluster.namespace().command("cargo"));
            tests.args(["test", "--workspace", "--offline", "--no-fail-fast", "--lib", "--bins", "--tests"]);
            tests.envs(cluster.environment());
            tests.env("PYTHON", python).env("PYTHON_EXPORTER", exporter).env("HELM", &helm);
            tests
        };
        self.run_ignored(tests, &self.filter).await
    }

    /// Once more those of them in which Celery's clients and workers meet ours, with an older Celery. Of the whole workspace: a
    /// package for itself may be built with other features, and so anew.
    pub(crate) async fn with_older_celery(&self, cluster: &Cluster, older: &Path) -> Result<Counts> {
        const WITH_CELERY: [&str; 5] = ["calls::", "canvas::", "compatibility::", "control::", "retries::"];
        if self.filter.is_some() {
            return Ok(Counts::default());
        }
        let tests = || {
            let mut tests = cargo(cluster.namespace().command("cargo"));
            tests.args(["test", "--workspace", "--offline", "--no-fail-fast", "--test", "broker"]);
            tests.envs(cluster.environment()).env("PYTHON", older);
            tests
        };
        self.run_ignored(tests, WITH_CELERY).await
    }

    /// Once more tests that need RabbitMQ and Redis and no cluster, with a newer RabbitMQ: all of them, or the operator's with a choice of
    /// the worker's.
    pub(crate) async fn with_newer_rabbitmq(
        &self,
        newer: &NewerRabbit,
        (python, exporter): (&Path, &Path),
        all: bool,
    ) -> Result<Counts> {
        const CHOICE: [&str; 5] = ["calls::", "delays::", "failures::", "retries::", "shutdown::"];
        // It listens with TLS nowhere.
        const OF_OPERATOR: [&str; 3] = ["broker::tests", "--skip", "tls_takes_an_authority"];
        let folder = paths::target().join("newer-rabbitmq");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let settings = Settings {
            redis: &["--appendonly", "no", "--save", ""],
            erlang: "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        };
        let servers = Servers::start_newer(&folder, settings, newer).await?;
        let (worker, choice) = match all {
            true => (["--test", "broker", "--test", "live", "--test", "cli"].as_slice(), [].as_slice()),
            false => (["--test", "broker"].as_slice(), CHOICE.as_slice()),
        };
        let mut counts = Counts::default();
        for (targets, options) in [(["--lib"].as_slice(), OF_OPERATOR.as_slice()), (worker, choice)] {
            let tests = || {
                let mut tests = cargo(netns::Namespace::of_the_machine().command("cargo"));
                tests.args(["test", "--workspace", "--offline", "--no-fail-fast"]).args(targets);
                tests.env("AMQP_URL", &servers.amqp_url).env("REDIS_URL", &servers.redis_url);
                tests.envs(servers.management_url.as_ref().map(|url| ("MANAGEMENT_URL", url)));
                tests.env("PYTHON", python).env("PYTHON_EXPORTER", exporter);
                tests
            };
            counts += self.run_ignored(tests, options).await?;
        }
        Ok(counts)
    }

    /// Runs tests that are ignored otherwise. They meet servers, browsers and each other, and the machine may be a slow one: the few that
    /// fail are tried once more, with nothing beside them. What passes then is named at the end, for it still is a fault.
    async fn run_ignored(
        &self,
        tests: impl Fn() -> Command,
        options: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Counts> {
        let mut counts = self.run(tests(), with(&["--ignored"], options)).await?;
        if !counts.can_try_again() {
            return Ok(counts);
        }
        let names = std::mem::take(&mut counts.failing);
        println!("\n== once more: {}", names.join(", "));
        let again = self.run(tests(), with(&["--ignored", "--exact", "--test-threads=1"], &names)).await?;
        if again.failed > 0 || again.broken || usize::try_from(again.passed)? < names.len() {
            return Ok(Counts { failing: names, ..counts });
        }
        Ok(Counts { passed: counts.passed + again.passed, unsteady: names, ..Counts::default() })
    }

    async fn run(
        &self,
        mut tests: Command,
        options: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Counts> {
        tests.arg("--").args(options);
        for name in &self.skip {
            tests.args(["--skip", name]);
        }
        // A group of its own, so that the programs that cargo starts can be ended with it.
        tests.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut group = Group(tests.spawn().context("run cargo test")?);
        tokio::time::timeout(TESTS, group.count())
            .await
            .map_err(|_| anyhow!("the tests took longer than {TESTS:?}"))?
            .context("run cargo test")
    }
}

fn with(first: &[&str], more: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let first = first.iter().map(|option| (*option).to_owned());
    first.chain(more.into_iter().map(|option| option.as_ref().to_owned())).collect()
}

fn cargo(command: std::process::Command) -> Command {
    let mut command = Command::from(command);
    command.current_dir(paths::repository());
    command
}

/// A program and everything that it started; ended when dropped.
struct Group(Child);

impl Group {
    /// Passes on what the tests print, to the end, and adds up the results.
    async fn count(&mut self) -> Result<Counts> {
        let mut counts = Counts::default();
        let mut lines = BufReader::new(self.0.stdout.take().context("standard output is piped")?).lines();
        while let Some(line) = lines.next_line().await? {
            println!("{line}");
            counts += result(&line);
        }
        counts.broken = !self.0.wait().await?.success();
        Ok(counts)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The number is gone once the program was waited for; then nothing is left to end.
        if let Some(pid) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// What a line of libtest's says: `running 3 tests`, `test a::b ... FAILED`,
/// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
fn result(line: &str) -> Counts {
    if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
        return Counts { open: 1, ..Counts::default() };
    }
    if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
        return Counts { failing: vec![name.to_owned()], ..Counts::default() };
    }
    let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
        return Counts::default();
    };
    let count = |what: &str| {
        let part = counts.split("; ").find_map(|part| part.strip_suffix(what));
        part.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
    };
    Counts { passed: count("passed"), failed: count("failed"), open: -1, ..Counts::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_test_program_says_at_its_end() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(result(line), Counts { passed: 12, failed: 3, open: -1, ..Counts::default() });
        assert_eq!(result("running 15 tests").open, 1);
        assert_eq!(result("test a::b ... FAILED").failing, ["a::b"]);
        assert_eq!(result("test a ... ok"), Counts::default());
        assert_eq!(result("test result: ok"), Counts::default());
    }

    fn counts(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        for line in lines {
            counts += result(line);
        }
        counts
    }

    #[test]
    fn failures_are_tried_again_only_if_few_and_all_known() {
        let end = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert!(counts(&["running 3 tests", "test a ... FAILED", end]).can_try_again());
        // Another program died, or a failure's line could not be read.
        assert!(!counts(&["running 3 tests", "test a ... FAILED", end, "running 2 tests"]).can_try_again());
        assert!(!counts(&["running 3 tests", end]).can_try_again());
        let many = "test result: FAILED. 0 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let lines = [
            "running 4 tests",
            "test a ... FAILED",
            "test b ... FAILED",
            "test c ... FAILED",
            "test d ... FAILED",
            many,
        ];
        assert!(!counts(&lines).can_try_again());
        assert!(!counts(&["running 0 tests"]).can_try_again());
    }

    /// Stands for `cargo test`: `a` passes, and `b` does when it is run alone, if `alone` says so.
    fn cargo_test(alone: &str) -> Command {
        let script = format!(
            r#"case "$*" in
            "--ignored --exact --test-threads=1 b") echo "running 1 test"; {alone} ;;
            *) echo "running 2 tests"; echo "test b ... FAILED"; echo "test result: FAILED. 1 passed; 1 failed; 0 ignored"; exit 101 ;;
            esac"#
        );
        let mut tests = Command::new("sh");
        tests.args(["-c", &script]);
        tests
    }

    #[tokio::test]
    async fn what_passes_when_it_is_tried_again_is_named() {
        let suite = Suite { filter: None, skip: Vec::new() };
        let passes = r#"echo "test result: ok. 1 passed; 0 failed; 0 ignored""#;
        let counts = suite.run_ignored(|| cargo_test(passes), &None::<String>).await.unwrap();
        assert_eq!(counts, Counts { passed: 2, unsteady: vec!["b".to_owned()], ..Counts::default() });
        let nothing = r#"echo "test result: ok. 0 passed; 0 failed; 0 ignored""#;
        for fails in ["exit 101", nothing] {
            let counts = suite.run_ignored(|| cargo_test(fails), &None::<String>).await.unwrap();
            assert_eq!(
                (counts.failed, counts.broken, counts.failing.as_slice()),
                (1, true, &["b".to_owned()][..])
            );
        }
    }

    #[tokio::test]
    async fn what_cargo_started_ends_with_it() {
        let mut parent = Command::new("sh");
        parent.args(["-c", "sleep 300 & echo $!; wait"]).process_group(0).stdout(Stdio::piped());
        let mut group = Group(parent.spawn().unwrap());
        let mut lines = BufReader::new(group.0.stdout.take().unwrap()).lines();
        let child = lines.next_line().await.unwrap().unwrap();
        drop(group);
        // It ends asynchronously, and closes its end of the pipe.
        let end = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        assert!(end.unwrap().unwrap().is_none(), "process {child} still runs");
    }
}
