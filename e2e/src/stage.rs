//! The cluster that the tests and the demo run on, with Soloist on it.

use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::{chart, go_tools::GoTools, images, progress::Progress, python, testing};
use anyhow::{Context, Result};

/// Where they run.
pub enum Stage {
    /// This checkout's cluster.
    Own {
        /// Whether it ran before, and so is to stay.
        ran_before: bool,
    },
    /// One that was there, with what is beside it.
    Given(Box<Cluster>),
}

impl Stage {
    /// Makes what can be made before there is a cluster, and gives back the Python with Celery in it.
    ///
    /// # Errors
    /// If something is missing and can't be had.
    pub async fn prepare(progress: &Progress, kubeconfig: Option<&Path>) -> Result<PathBuf> {
        match kubeconfig {
            // Of the cluster's programs only helm is used, and that takes no special rights.
            Some(_) => GoTools::ensure(progress).await?,
            None => Cluster::prepare(progress).await?,
        };
        python::ensure(progress, python::NEWEST).await
    }

    /// This checkout's cluster, or that of `kubeconfig`.
    ///
    /// # Errors
    /// If a variable is missing that says where the servers beside a given cluster are.
    pub fn find(kubeconfig: Option<PathBuf>) -> Result<Self> {
        Ok(match kubeconfig {
            Some(kubeconfig) => {
                let kubeconfig =
                    kubeconfig.canonicalize().with_context(|| format!("find {}", kubeconfig.display()))?;
                Self::Given(Box::new(Cluster::given(kubeconfig)?))
            }
            None => Self::Own { ran_before: Cluster::find().is_ok() },
        })
    }

    /// Starts the cluster if it is ours to start, and installs the chart.
    ///
    /// # Errors
    /// If the images can't be built, or the cluster or the operator doesn't come up.
    pub async fn set(&self, progress: &Progress) -> Result<Cluster> {
        let cluster = match self {
            Self::Given(cluster) => (**cluster).clone(),
            Self::Own { .. } => {
                let tars = images::ours(progress).await?;
                let cluster = Cluster::up(progress).await?;
                let step = progress.step("load our images");
                cluster.load(&tars).await?;
                step.done("");
                cluster
            }
        };
        let step = progress.step("helm install soloist");
        if let Err(error) = chart::install(&cluster).await {
            drop(step);
            if let Self::Own { .. } = self {
                let shown = cluster.namespace().run(|| async {
                    testing::dump_state(chart::NAMESPACE).await;
                    Ok(())
                });
                shown.await?;
            }
            return Err(error);
        }
        step.done("");
        Ok(cluster)
    }

    /// Takes away what [`set`](Self::set) made.
    ///
    /// # Errors
    /// If something can't be stopped or removed.
    pub async fn clear(self, progress: &Progress) -> Result<()> {
        match self {
            Self::Own { ran_before: false } => Cluster::down(progress).await,
            Self::Own { ran_before: true } => {
                progress.say("the cluster was up before and stays: `cargo cluster down` ends it");
                chart::uninstall(&Cluster::find()?).await
            }
            Self::Given(cluster) => chart::uninstall(&cluster).await,
        }
    }
}
