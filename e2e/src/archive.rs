//! Container images without a builder or a registry: one layer over nothing, as the tar that `docker save` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// What goes into an image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Repository and tag.
    pub(crate) reference: String,
    /// Absolute path in the image, and the file of this machine that goes there.
    pub(crate) files: BTreeMap<String, PathBuf>,
    /// What it runs.
    pub(crate) entrypoint: String,
    /// Numeric user and group it runs as.
    pub(crate) user: u32,
}

impl Image {
    /// Writes the image to `tar`. The same files make the same image, bit for bit.
    ///
    /// # Errors
    /// If a file can't be read or `tar` can't be written.
    pub(crate) fn write(&self, tar: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = hex(&Sha256::digest(&layer));
        let config = json!({
            "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
            "os": "linux",
            "config": {
                "Entrypoint": [self.entrypoint],
                "User": format!("{0}:{0}", self.user),
                "Env": ["PATH=/", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
            "history": [{"created_by": "cargo cluster images"}],
        });
        let config = serde_json::to_vec(&config).context("write the image's configuration")?;
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest = json!([{"Config": config_name, "RepoTags": [self.reference], "Layers": [layer_name]}]);
        let manifest = serde_json::to_vec(&manifest).context("write the image's manifest")?;

        let aside = tar.with_extension("part");
        let file = File::create(&aside).with_context(|| format!("create {}", aside.display()))?;
        let mut archive = tar::Builder::new(BufWriter::new(file));
        add(&mut archive, &layer_name, 0o644, &layer)?;
        add(&mut archive, &config_name, 0o644, &config)?;
        add(&mut archive, "manifest.json", 0o644, &manifest)?;
        archive.into_inner()?.flush()?;
        std::fs::rename(&aside, tar).with_context(|| format!("move {} into place", tar.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, file) in &self.files {
            let content = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let mode = if *path == self.entrypoint { 0o755 } else { 0o644 };
            add(&mut archive, path.trim_start_matches('/'), mode, &content)?;
        }
        Ok(archive.into_inner()?)
    }
}

fn add(archive: &mut tar::Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    archive.append_data(&mut header, path, content).with_context(|| format!("add {path}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn writes_one_layer_and_names_it() {
        let folder = std::env::temp_dir().join(format!("soloist-archive-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let image = Image {
            reference: "example/program:1".to_owned(),
            files: BTreeMap::from([("/program".to_owned(), program)]),
            entrypoint: "/program".to_owned(),
            user: 65532,
        };
        let (first, second) = (folder.join("first.tar"), folder.join("second.tar"));
        image.write(&first).unwrap();
        image.write(&second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());

        let mut texts = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&first).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            texts.insert(name, content);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&texts["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "example/program:1");
        let config: serde_json::Value =
            serde_json::from_slice(&texts[manifest[0]["Config"].as_str().unwrap()]).unwrap();
        let layer = &texts[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
