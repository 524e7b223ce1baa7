//! RabbitMQ of another release of Debian than this machine's: its packages, unpacked into a folder that becomes the server's root. Nothing of
//! it is installed, and none of the packages' own programs is run but for the server's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::{command, debian, paths, progress::Progress, state};

const MIRROR: &str = "http://deb.debian.org/debian";
/// RabbitMQ, and what its scripts need to run; apt adds what these need.
const PACKAGES: [&str; 6] = ["rabbitmq-server", "base-files", "dash", "coreutils", "sed", "grep"];
/// 75 MB and 15 MB of lists; on a slow line at half a megabyte a second.
const DOWNLOAD: Duration = Duration::from_secs(240);

/// Takes its root, a folder and a program with its arguments, and becomes that program in that root, with the folder in its place. What is
/// mounted for that is the program's own, and gone with it.
const ENTER: &str = r#"
root=$1 folder=$2; shift 2
for path in /proc /dev "$folder"; do
  mkdir -p "$root$path" && mount --rbind "$path" "$root$path" || exit
done
exec chroot "$root" "$@""#;

/// A RabbitMQ that can be started.
#[derive(Clone, Debug)]
pub struct NewerRabbit {
    root: PathBuf,
    version: String,
}

impl NewerRabbit {
    /// Gets the one of a release of Debian (`trixie`, `sid`), unless it is there.
    ///
    /// # Errors
    /// If Debian's mirror can't be reached.
    pub async fn ensure(progress: &Progress, release: &str) -> Result<Self> {
        let folder = paths::cache().join("rabbitmq").join(release);
        let root = folder.join("root");
        // Written last: what was interrupted isn't taken for complete.
        let complete = folder.join("complete");
        let _lock = state::lock("rabbitmq")?;
        if !complete.exists() {
            debian::ensure_keyring(progress).await?;
            let step = progress.step(format!("RabbitMQ of Debian {release}"));
            if folder.exists() {
                std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
            }
            let packages = download(&folder.join("apt"), release)
                .await
                .with_context(|| format!("get RabbitMQ of {release} from {MIRROR}"))?;
            unpack(&packages, &root).await?;
            std::fs::remove_dir_all(folder.join("apt")).context("remove the packages")?;
            std::fs::write(&complete, "").with_context(|| format!("write {}", complete.display()))?;
            step.done(version(&root)?);
        }
        Ok(Self { version: version(&root)?, root })
    }

    /// Such as `4.0.5`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A command that runs one of its programs, which sees `folder` under the same path as we do, and nothing else of this machine.
    pub(crate) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", ENTER, "sh"]);
        command.arg(&self.root).arg(folder).arg(program);
        // What the environment names is not in that root.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

/// Has apt find out what is needed where nothing is installed, and fetch it. Its lists and its settings are its own.
async fn download(folder: &Path, release: &str) -> Result<Vec<PathBuf>> {
    let archives = folder.join("archives");
    for folder in [folder.join("lists/partial"), archives.join("partial")] {
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let write = |name: &str, text: &str| -> Result<String> {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file.display().to_string())
    };
    let keyring = debian::KEYRING;
    let sources = write("sources.list", &format!("deb [signed-by={keyring}] {MIRROR} {release} main\n"))?;
    let (status, own) = (write("status", "")?, folder.display());
    let settings = format!(
        "Dir::State \"{own}\";\nDir::State::status \"{status}\";\nDir::Cache \"{own}\";\n\
         Dir::Etc::SourceList \"{sources}\";\nDir::Etc::SourceParts \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n\
         Acquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n"
    );
    let settings = write("apt.conf", &settings)?;
    let update = ["update", "--quiet", "--error-on=any"];
    let install = [&["install", "--yes", "--quiet", "--download-only"], PACKAGES.as_slice()].concat();
    for arguments in [update.as_slice(), &install] {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("APT_CONFIG", &settings).env("DEBIAN_FRONTEND", "noninteractive");
        command::output(&mut apt, DOWNLOAD).await?;
    }
    let files = std::fs::read_dir(&archives).with_context(|| format!("read {}", archives.display()))?;
    let mut packages: Vec<PathBuf> =
        files.map(|file| Ok(file?.path())).collect::<Result<_>>().context("list the packages")?;
    packages.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    // base-files first: it has the links that make /bin one with /usr/bin.
    packages.sort_by_key(|file| !file.to_string_lossy().contains("/base-files_"));
    Ok(packages)
}

async fn unpack(packages: &[PathBuf], root: &Path) -> Result<()> {
    std::fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    for package in packages {
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(package).arg(root);
        command::output(&mut extract, Duration::from_secs(120)).await?;
    }
    // An installation would have written them. Erlang looks for its own machine there, and must not wait for a name server's answer.
    for (file, text) in
        [("hosts", "127.0.0.1 localhost\n::1 localhost\n"), ("nsswitch.conf", "hosts: files\n")]
    {
        std::fs::write(root.join("etc").join(file), text)
            .with_context(|| format!("write its /etc/{file}"))?;
    }
    Ok(())
}

/// RabbitMQ's version, which is in the name of its folder.
fn version(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/rabbitmq/lib");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry?.file_name();
        if let Some(version) = name.to_string_lossy().strip_prefix("rabbitmq_server-") {
            return Ok(version.to_owned());
        }
    }
    bail!("there is no RabbitMQ in {}", folder.display())
}
