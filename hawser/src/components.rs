//! Components that run alone, against any Kubernetes.

use std::path::Path;

use anyhow::{Context, Result};
use hawser_scheduler::Scheduler;

use crate::clients;
use crate::flags::SchedulerFlags;
use crate::signals;

/// `hawser scheduler`.
pub async fn scheduler(flags: SchedulerFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let client = clients::from_kubeconfig(&flags.kubeconfig).await?;
    Scheduler::new(hawser_scheduler::Config::default(), client)?.run(stop).await.context("scheduler")
}
