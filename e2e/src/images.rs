//! The images a cluster runs: ours, built as static programs by cargo, and those the cluster itself needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::archive::Image;
use crate::elf;
use crate::go_tools::GoTools;
use crate::{command, paths, progress::Progress};

/// What the chart pulls from unless told otherwise; nothing is pulled here, only named.
const REGISTRY: &str = "ghcr.io/soloist-dev";
/// "nobody" of distroless images, and by now everyone's.
const NOBODY: u32 = 65532;
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// A cold release build of both takes about 6 minutes on two cores.
const BUILD: Duration = Duration::from_secs(45 * 60);

/// Our programs, and the most bytes that each may have. At first they had 20 and 9 MB: what goes beyond is worth a second thought.
const PROGRAMS: [(&str, u64); 2] = [("soloist-operator", 25_000_000), ("soloist-worker", 15_000_000)];

/// The image of every pod's sandbox.
pub const PAUSE: &str = "soloist.dev/pause:1";
/// CoreDNS, with a few of its plugins.
pub const COREDNS: &str = "soloist.dev/coredns:1";
/// Tells the tests over HTTP what a pod can see; `e2e/cluster/images/probe` says how.
pub const PROBE: &str = "soloist.dev/probe:1";

/// The reference of one of our images, as the chart names it.
pub fn reference(name: &str) -> String {
    format!("{REGISTRY}/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// Where [`ours`] leaves one of our programs.
pub fn program(name: &str) -> PathBuf {
    paths::target().join(format!("{}-unknown-linux-musl/release/{name}", std::env::consts::ARCH))
}

/// The programs of benchmarks, built as those of the images are.
pub struct Programs {
    /// The worker.
    pub worker: PathBuf,
    /// What puts load on it.
    pub load: PathBuf,
}

impl Programs {
    /// Those that have been built before.
    ///
    /// # Errors
    /// If one is missing.
    pub fn built() -> Result<Self> {
        let find = |name: &str| {
            let file = program(name);
            if file.exists() { Ok(file) } else { Err(anyhow::anyhow!("{} is not built", file.display())) }
        };
        Ok(Self { worker: find("soloist-worker")?, load: find("load")? })
    }
}

/// Builds the programs of benchmarks.
///
/// # Errors
/// If the build fails, or the musl target can't be had.
pub async fn programs(progress: &Progress) -> Result<Programs> {
    let step = progress.step("cargo build worker, load");
    build(&["soloist-worker", "e2e-load"], |line| step.note(line)).await?;
    optimize("soloist-worker", "soloist-worker", |line| step.note(line)).await?;
    // What the worker is compared with is to have the same.
    optimize("e2e-load", "load", |line| step.note(line)).await?;
    step.done("");
    Programs::built()
}

/// Builds `soloist-operator` and `soloist-worker` as static programs and gives back the tars of their images. The load of
/// benchmarks is built along with them, as it needs what they need.
///
/// # Errors
/// If the build fails, the musl target can't be had, or a program turns out not to be static or to be too large.
pub async fn ours(progress: &Progress) -> Result<Vec<PathBuf>> {
    let step = progress.step("cargo build images");
    let packages = PROGRAMS.map(|(program, _)| program);
    build(&[packages.as_slice(), &["e2e-load"]].concat(), |line| step.note(line)).await?;
    optimize("soloist-worker", "soloist-worker", |line| step.note(line)).await?;
    let mut tars = Vec::new();
    let mut sizes = Vec::new();
    for (program, most_bytes) in PROGRAMS {
        let binary = self::program(program);
        check(&binary, most_bytes)?;
        let tar = write(&reference(program), &binary, true)?;
        sizes.push(format!("{program} {:.1} MB", tar.metadata()?.len() as f64 / 1e6));
        tars.push(tar);
    }
    step.done(sizes.join(", "));
    Ok(tars)
}

/// The setting for cargo by which rustc
/// - writes no folder of this machine into the programs (panics name their place in the source): the same sources then make the same program
///   wherever they lie;
/// - keeps what [`optimize`] needs in the libraries;
/// - writes the places that the loader adjusts in an eighth of the space, all of which is read at each start.
fn rustflags(target: &str) -> Result<String> {
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("neither CARGO_HOME nor HOME is set")?.join(".cargo"),
    };
    let flag = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        flag(&cargo_home.join("registry/src"), "/crates"),
        flag(&paths::repository(), "/soloist"),
        "-Cembed-bitcode=yes".to_owned(),
        "-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned(),
    ];
    Ok(format!("target.{target}.rustflags={flags:?}"))
}

/// Builds the programs of these packages for release, static.
async fn build(packages: &[&str], line: impl FnMut(&str)) -> Result<()> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    add_target(&target).await?;
    let mut build = cargo("build", &target)?;
    build.arg("--bins");
    for package in packages {
        build.args(["--package", package]);
    }
    command::watch(&mut build, BUILD, line).await
}

/// Makes a program anew that [`build`] has built, now optimized across all crates. That takes the worker a seventh of its size and a fifth
/// of its CPU time, and a minute more to build; the operator would take more than three.
async fn optimize(package: &str, program: &str, line: impl FnMut(&str)) -> Result<()> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let mut rustc = cargo("rustc", &target)?;
    rustc.args(["--package", package, "--bin", program, "--", "-Clto=fat", "-Ccodegen-units=1"]);
    command::watch(&mut rustc, BUILD, line).await
}

/// A command of cargo's for release builds.
fn cargo(command: &str, target: &str) -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([command, "--locked", "--release", "--target", target]);
    cargo.arg("--config").arg(rustflags(target)?).current_dir(paths::repository());
    Ok(cargo)
}

/// Refuses a program that an image `FROM scratch` can't run, or that has grown beyond its limit.
fn check(binary: &Path, most_bytes: u64) -> Result<()> {
    let shown = binary.display();
    let program = std::fs::read(binary).with_context(|| format!("read {shown}"))?;
    if let Some(interpreter) = elf::interpreter(&program).with_context(|| format!("look into {shown}"))? {
        bail!("{shown} is not static: it needs {interpreter}, which its image does not have");
    }
    for folder in [paths::repository().display().to_string(), "/registry/src/".to_owned()] {
        if program.windows(folder.len()).any(|window| window == folder.as_bytes()) {
            bail!("{shown} tells where it was built: it holds {folder}");
        }
    }
    let bytes = program.len() as u64;
    if bytes > most_bytes {
        let (has, limit) = (bytes as f64 / 1e6, most_bytes as f64 / 1e6);
        bail!(
            "{shown} has {has:.1} MB, and {limit} MB at most are wanted: see PROGRAMS in e2e/src/images.rs"
        );
    }
    Ok(())
}

/// The images that the cluster itself and its tests need.
pub(crate) fn of_the_cluster(tools: &GoTools) -> Result<Vec<PathBuf>> {
    [(PAUSE, "pause"), (COREDNS, "coredns"), (PROBE, "probe")]
        .map(|(reference, program)| write(reference, &tools.program(program), false))
        .into_iter()
        .collect()
}

/// Writes an image of one static program, unless the tar there is newer than the program.
fn write(reference: &str, binary: &Path, with_certificates: bool) -> Result<PathBuf> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tar = paths::images().join(format!("{name}.tar"));
    let modified = |file: &Path| file.metadata().and_then(|found| found.modified());
    let built = modified(binary).with_context(|| format!("find {}", binary.display()))?;
    if modified(&tar).is_ok_and(|written| written > built) {
        return Ok(tar);
    }
    std::fs::create_dir_all(paths::images()).context("create the folder of the images")?;
    let entrypoint = format!("/{name}");
    let mut files = BTreeMap::from([(entrypoint.clone(), binary.to_owned())]);
    if with_certificates {
        files.insert(CERTIFICATES.to_owned(), PathBuf::from(CERTIFICATES));
    }
    Image { reference: reference.to_owned(), files, entrypoint, user: NOBODY }.write(&tar)?;
    Ok(tar)
}

/// Imports the tars into a containerd, for Kubernetes.
pub(crate) async fn import(containerd: &Path, tars: &[PathBuf]) -> Result<()> {
    let program = command::find("ctr").unwrap_or_else(|| "ctr".into());
    for tar in tars {
        let mut ctr = Command::new(&program);
        ctr.arg("--address").arg(containerd).args(["--namespace", "k8s.io", "images", "import"]).arg(tar);
        command::output(&mut ctr, Duration::from_secs(120)).await?;
    }
    Ok(())
}

/// Has rustup fetch the target's standard library if it isn't there. Without rustup, cargo says what is missing.
async fn add_target(target: &str) -> Result<()> {
    let Some(rustup) = command::find("rustup") else { return Ok(()) };
    let mut list = Command::new(&rustup);
    list.args(["target", "list", "--installed"]).current_dir(paths::repository()).stderr(Stdio::null());
    let installed = command::output(&mut list, Duration::from_secs(60)).await?;
    if installed.lines().any(|line| line == target) {
        return Ok(());
    }
    let mut add = Command::new(&rustup);
    add.args(["target", "add", target]).current_dir(paths::repository());
    if let Err(error) = command::output(&mut add, Duration::from_secs(300)).await {
        bail!("the target {target} is missing and can't be added: {error:#}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_an_interpreter_is_refused() {
        // A test's own program is linked against the system's C library.
        let refused = check(&std::env::current_exe().unwrap(), u64::MAX).unwrap_err().to_string();
        assert!(refused.contains("is not static") && refused.contains("ld-"), "{refused}");
    }

    #[test]
    fn a_program_beyond_its_limit_is_refused() {
        let file = std::env::temp_dir().join(format!("soloist-elf-{}", uuid::Uuid::new_v4().simple()));
        std::fs::write(&file, elf::tests::program(&[])).unwrap();
        let (fits, refused) = (check(&file, 64), check(&file, 63));
        std::fs::remove_file(&file).unwrap();
        fits.unwrap();
        assert!(refused.unwrap_err().to_string().contains("MB at most"));
    }
}
