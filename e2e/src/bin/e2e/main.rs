//! `cargo e2e`: every test of the project.
//!
//! ```text
//! build ── tests that need nothing ── images, Celery ── cluster up, helm install ── tests that need it ── down
//!                                                                    ... with an older Celery, a newer RabbitMQ
//! ```

mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use e2e::stage::Stage;
use e2e::{debian, interrupt, newer_rabbitmq::NewerRabbit, progress::Progress, python};

use crate::suite::{Counts, Suite};

/// The release of Debian whose RabbitMQ is tried too: the stable one, where a version stays the same for years.
const RELEASE: &str = "trixie";
const WITHOUT_NEWER: &str = "where there is no way to Debian's mirror, leave it out with --no-newer-rabbitmq";

/// Runs every test of the project: those that need nothing first, then those that need a cluster and servers, which are
/// started for them and stopped afterwards.
#[derive(Parser)]
#[command(name = "cargo e2e", bin_name = "cargo e2e")]
struct Arguments {
    /// Only tests whose names contain this
    #[arg(long)]
    filter: Option<String>,
    /// Not the tests whose names contain this; may be repeated
    #[arg(long)]
    skip: Vec<String>,
    /// Leave the cluster up at the end
    #[arg(long)]
    keep: bool,
    /// Not the tests with a newer RabbitMQ, where Debian's mirror can't be reached
    #[arg(long)]
    no_newer_rabbitmq: bool,
    /// Only the tests that need RabbitMQ and no cluster, all of them, with the RabbitMQ of this release of Debian (`trixie`, `sid`)
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["no_newer_rabbitmq", "kubeconfig", "keep", "filter"])]
    rabbitmq: Option<String>,
    /// Use the cluster of this kubeconfig instead of starting one. It must have the images, and AMQP_URL,
    /// MANAGEMENT_URL, REDIS_URL and PROMETHEUS_URL must name servers that its pods and this machine reach under the
    /// same addresses. Tests that stop a server or read the audit log fail there; --skip them. There are none with a newer RabbitMQ then
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let progress = Progress::new();
    let mut run = Run { progress, phases: Vec::new(), counts: Counts::default() };
    let mut stage = None;
    let outcome = tokio::select! {
        outcome = run.everything(&arguments, &mut stage) => outcome,
        interrupted = interrupt::requested() => interrupted.and_then(|()| Err(anyhow::anyhow!("interrupted"))),
    };
    let cleared = match (stage, arguments.keep) {
        (Some(stage), false) => stage.clear(&run.progress).await,
        _ => Ok(()),
    };
    run.conclude(outcome.and(cleared))
}

/// What has been done so far.
struct Run {
    progress: Progress,
    /// Each with its seconds.
    phases: Vec<(&'static str, f64)>,
    counts: Counts,
}

impl Run {
    async fn everything(&mut self, arguments: &Arguments, stage: &mut Option<Stage>) -> Result<()> {
        let suite = Suite { filter: arguments.filter.clone(), skip: arguments.skip.clone() };
        let progress = self.progress.clone();
        if let Some(release) = &arguments.rabbitmq {
            return self.newer_rabbitmq(&suite, release).await;
        }

        let started = self.begin("prepare");
        let python = Stage::prepare(&progress, arguments.kubeconfig.as_deref()).await?;
        let older = python::ensure(&progress, python::OLDER).await?;
        let exporter = python::ensure(&progress, python::EXPORTER).await?;
        debian::ensure_browser(&progress).await?;
        let newer = match arguments.kubeconfig.is_none() && !arguments.no_newer_rabbitmq {
            true => Some(NewerRabbit::ensure(&progress, RELEASE).await.context(WITHOUT_NEWER)?),
            false => None,
        };
        suite.build(&progress).await?;
        self.end("prepare", started);

        let started = self.begin("tests that need nothing");
        self.counts += suite.alone().await?;
        self.end("tests that need nothing", started);

        let started = self.begin("cluster");
        *stage = Some(Stage::find(arguments.kubeconfig.clone())?);
        let set = stage.as_ref().expect("it was put there a line above").set(&progress).await?;
        self.end("cluster", started);

        let started = self.begin("tests that need a cluster");
        self.counts += suite.on_cluster(&set, &python, &exporter).await?;
        self.end("tests that need a cluster", started);

        let started = self.begin("with an older Celery");
        self.counts += suite.with_older_celery(&set, &older).await?;
        self.end("with an older Celery", started);

        let Some(newer) = newer.filter(|_| arguments.filter.is_none()) else {
            self.progress.say("not run: tests with a newer RabbitMQ");
            return Ok(());
        };
        let started = self.begin("with a newer RabbitMQ");
        self.counts += suite.with_newer_rabbitmq(&newer, (&python, &exporter), false).await?;
        self.end("with a newer RabbitMQ", started);
        Ok(())
    }

    async fn newer_rabbitmq(&mut self, suite: &Suite, release: &str) -> Result<()> {
        let progress = self.progress.clone();
        let started = self.begin("prepare");
        debian::ensure(&progress).await?;
        debian::ensure_browser(&progress).await?;
        let newer = NewerRabbit::ensure(&progress, release).await?;
        let python = python::ensure(&progress, python::NEWEST).await?;
        let exporter = python::ensure(&progress, python::EXPORTER).await?;
        suite.build(&progress).await?;
        self.end("prepare", started);

        self.progress.say(format!("RabbitMQ {} of Debian {release}", newer.version()));
        let started = self.begin("with a newer RabbitMQ");
        self.counts += suite.with_newer_rabbitmq(&newer, (&python, &exporter), true).await?;
        self.end("with a newer RabbitMQ", started);
        Ok(())
    }

    fn begin(&self, phase: &'static str) -> Instant {
        self.progress.say(format!("== {phase}"));
        Instant::now()
    }

    fn end(&mut self, phase: &'static str, started: Instant) {
        self.phases.push((phase, started.elapsed().as_secs_f64()));
    }

    /// Prints the end of the output, and gives the exit code.
    fn conclude(&self, outcome: Result<()>) -> ExitCode {
        println!();
        for (phase, seconds) in &self.phases {
            println!("{phase:<28} {seconds:7.1} s");
        }
        let Counts { passed, failed, broken, ref unsteady, .. } = self.counts;
        if let Err(error) = outcome {
            println!("error: {error:#}");
            println!("{passed} passed, {failed} failed, not all were run");
            return ExitCode::FAILURE;
        }
        if broken && failed == 0 {
            println!("error: a test program could not be built or did not end as it should, see above");
        }
        for name in unsteady {
            println!("unsteady: {name} failed, and passed when it was tried again");
        }
        println!("{passed} passed, {failed} failed");
        if failed == 0 && !broken { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
