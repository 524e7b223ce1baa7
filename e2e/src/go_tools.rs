//! The cluster's programs that come from Go modules: built once, kept by a hash of what they are built from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::{command, paths, progress::Progress, state};

/// A cold build of the largest takes 5 minutes on two cores that do nothing else.
const BUILD: Duration = Duration::from_secs(45 * 60);

/// One of the modules under `e2e/cluster`.
struct Module {
    folder: &'static str,
    /// What `go build` is asked for, and the name of the program it makes.
    programs: &'static [(&'static str, &'static str)],
    /// Other names of the program, which decide what it does (busybox's way).
    aliases: &'static [&'static str],
    ldflags: &'static str,
    /// Shown while it is built.
    hint: &'static str,
}

const MODULES: &[Module] = &[
    Module {
        folder: "kubernetes",
        programs: &[(".", "kubernetes")],
        aliases: &[
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
            "pod-targets",
        ],
        ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
                  -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
        hint: "etcd and Kubernetes, about 5 minutes the first time",
    },
    Module {
        folder: "coredns",
        programs: &[(".", "coredns")],
        aliases: &[],
        ldflags: "-s -w",
        hint: "about a minute the first time",
    },
    Module {
        folder: "helm",
        programs: &[("helm.sh/helm/v4/cmd/helm", "helm")],
        aliases: &[],
        ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
        hint: "about two minutes the first time",
    },
    Module {
        folder: "images",
        programs: &[("./pause", "pause"), ("./probe", "probe")],
        aliases: &[],
        ldflags: "-s -w",
        hint: "the pause image, and one for the tests",
    },
];

/// Where the programs lie.
#[derive(Clone, Debug)]
pub struct GoTools {
    folders: Vec<PathBuf>,
}

impl GoTools {
    /// Builds what isn't there.
    ///
    /// # Errors
    /// If Go is missing or a build fails.
    pub async fn ensure(progress: &Progress) -> Result<Self> {
        let _lock = state::lock("tools")?;
        let mut folders = Vec::new();
        for module in MODULES {
            folders.push(module.ensure(progress).await?);
        }
        Ok(Self { folders })
    }

    /// The programs as an earlier [`ensure`](Self::ensure) left them.
    ///
    /// # Errors
    /// If one isn't built, or was built from other versions.
    pub fn built() -> Result<Self> {
        let folders = MODULES.iter().map(Module::built).collect::<Result<Vec<_>>>()?;
        Ok(Self { folders })
    }

    /// The file of a program, by its name.
    pub fn program(&self, name: &str) -> PathBuf {
        let mut files = self.folders.iter().map(|folder| folder.join(name));
        files.find(|file| file.exists()).unwrap_or_else(|| PathBuf::from(name))
    }
}

impl Module {
    fn source(&self) -> PathBuf {
        paths::cluster_sources().join(self.folder)
    }

    /// `<cache>/tools/<module>-<hash of all that decides what is built>`
    fn folder(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(self.ldflags);
        let mut files = Vec::new();
        collect(&self.source(), &mut files)?;
        files.sort();
        for file in files {
            hash.update(file.strip_prefix(paths::repository()).unwrap_or(&file).to_string_lossy().as_bytes());
            hash.update(std::fs::read(&file).with_context(|| format!("read {}", file.display()))?);
        }
        let digest: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(paths::tools().join(format!("{}-{digest}", self.folder)))
    }

    fn built(&self) -> Result<PathBuf> {
        let folder = self.folder()?;
        if !folder.is_dir() {
            bail!("{} isn't built yet: run `cargo cluster up`", self.folder);
        }
        Ok(folder)
    }

    async fn ensure(&self, progress: &Progress) -> Result<PathBuf> {
        let folder = self.folder()?;
        if folder.is_dir() {
            return Ok(folder);
        }
        let Some(go) = command::find("go") else {
            bail!("Go is missing (1.26 or newer): it builds the cluster's programs; see https://go.dev/dl");
        };
        let step = progress.step(format!("go build {}", self.folder));
        step.note(self.hint);
        // Built aside and moved into place when it is complete: an interrupted build leaves nothing that looks built.
        let aside = folder.with_extension("part");
        std::fs::create_dir_all(&aside).with_context(|| format!("create {}", aside.display()))?;
        for (package, program) in self.programs {
            let mut build = Command::new(&go);
            build
                .args([
                    "build",
                    "-trimpath",
                    "-buildvcs=false",
                    "-mod=readonly",
                    "-ldflags",
                    self.ldflags,
                    "-o",
                ])
                .arg(aside.join(program))
                .arg(package)
                .current_dir(self.source())
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", "");
            command::watch(&mut build, BUILD, |line| step.note(format!("{}: {line}", self.hint))).await?;
        }
        for alias in self.aliases {
            let link = aside.join(alias);
            if !link.exists() {
                std::os::unix::fs::symlink(self.programs[0].1, link)?;
            }
        }
        self.forget_others(&folder, &aside)?;
        std::fs::rename(&aside, &folder).with_context(|| format!("move {} into place", folder.display()))?;
        step.done("");
        Ok(folder)
    }

    /// Removes what earlier versions of this module were built into: each is up to 140 MB.
    fn forget_others(&self, folder: &Path, aside: &Path) -> Result<()> {
        for entry in std::fs::read_dir(paths::tools())? {
            let other = entry?.path();
            let name = other.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let of_this_module = name.strip_prefix(self.folder).is_some_and(|rest| rest.starts_with('-'));
            if of_this_module && other != folder && other != aside {
                std::fs::remove_dir_all(&other).with_context(|| format!("remove {}", other.display()))?;
            }
        }
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
