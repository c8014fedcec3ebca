//! `KubeSchedulerConfiguration` (kubescheduler.config.k8s.io/v1): read, checked, and made into profiles.

mod extenders;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use self::extenders::ExtenderFile;
pub use crate::extender::{Extender, Pem, Tls};
use crate::framework::Framework;
use crate::plugins::{DEFAULTS, Points, PrioritySort, Registry, default_profile};
use crate::queue::Backoff;

/// What the scheduler is started with.
pub struct Config {
    /// Profiles, told apart by their scheduler name.
    pub profiles: Vec<Framework>,
    pub extenders: Vec<Extender>,
    pub backoff: Backoff,
    /// This process' name in events.
    pub instance: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            profiles: vec![default_profile()],
            extenders: Vec::new(),
            backoff: Backoff::default(),
            instance: "default-scheduler".into(),
        }
    }
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct ConfigError {
    pub path: String,
    pub what: String,
}

fn error(path: impl Into<String>, what: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), what: what.into() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    percentage_of_nodes_to_score: Option<usize>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    #[serde(default)]
    profiles: Vec<Profile>,
    #[serde(default)]
    extenders: Vec<ExtenderFile>,
    // Of no use here: one thread schedules, and flags tell how to reach the API server.
    parallelism: Option<i32>,
    #[serde(rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<Value>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<Value>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<usize>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Plugins {
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
    multi_point: PluginSet,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<PluginName>,
    disabled: Vec<PluginName>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginName {
    name: String,
    #[serde(default)]
    weight: i64,
}

impl Config {
    /// Reads a configuration. `registry` has the plugins that it may name.
    ///
    /// # Errors
    /// With the place in the document and what is wrong there.
    pub fn read(document: Value, registry: &Registry) -> Result<Config, ConfigError> {
        let file: File =
            serde_json::from_value(document).map_err(|e| error("configuration", e.to_string()))?;
        if file.api_version != "kubescheduler.config.k8s.io/v1" || file.kind != "KubeSchedulerConfiguration" {
            let found =
                format!("no kind \"{}\" is registered for version \"{}\"", file.kind, file.api_version);
            return Err(error("apiVersion", found));
        }
        let defaults = Backoff::default();
        let backoff = Backoff {
            initial: file.pod_initial_backoff_seconds.map_or(defaults.initial, Duration::from_secs),
            longest: file.pod_max_backoff_seconds.map_or(defaults.longest, Duration::from_secs),
        };
        if backoff.initial.is_zero() {
            return Err(error("podInitialBackoffSeconds", "must be greater than 0"));
        }
        if backoff.longest < backoff.initial {
            return Err(error(
                "podMaxBackoffSeconds",
                "must be greater than or equal to PodInitialBackoffSeconds",
            ));
        }
        let percentage = file.percentage_of_nodes_to_score.unwrap_or(0);
        if percentage > 100 {
            return Err(error("percentageOfNodesToScore", "not in valid range [0-100]"));
        }
        if file.parallelism.is_some_and(|parallelism| parallelism <= 0) {
            return Err(error("parallelism", "should be an integer value greater than zero"));
        }
        extenders::check(&file.extenders)?;
        let ignored: BTreeSet<String> = file
            .extenders
            .iter()
            .flat_map(|e| &e.managed_resources)
            .filter(|m| m.ignored_by_scheduler)
            .map(|m| m.name.clone())
            .collect();
        let mut profiles = file.profiles;
        if profiles.is_empty() {
            profiles.push(Profile::default());
        }
        let alone = profiles.len() == 1;
        let mut built = Vec::new();
        let mut names = BTreeSet::new();
        for (at, mut profile) in profiles.into_iter().enumerate() {
            let path = format!("profiles[{at}]");
            let default = alone.then(|| "default-scheduler".to_owned());
            let Some(name) = profile.scheduler_name.take().filter(|n| !n.is_empty()).or(default) else {
                return Err(error(format!("{path}.schedulerName"), "Required value"));
            };
            if !names.insert(name.clone()) {
                let what = format!("Duplicate value: \"{name}\"");
                return Err(error(format!("{path}.schedulerName"), what));
            }
            let mut framework = build(&name, &profile, &path, registry, &ignored)?;
            framework.percentage_of_nodes_to_score =
                profile.percentage_of_nodes_to_score.unwrap_or(percentage);
            if framework.percentage_of_nodes_to_score > 100 {
                return Err(error(format!("{path}.percentageOfNodesToScore"), "not in valid range [0-100]"));
            }
            built.push(framework);
        }
        let extenders = file.extenders.into_iter().enumerate().map(|(at, e)| extenders::extender(at, e));
        Ok(Config {
            profiles: built,
            extenders: extenders.collect::<Result<_, _>>()?,
            backoff,
            instance: "default-scheduler".into(),
        })
    }
}

/// The plugins of all points: the defaults as the profile changes them, in order, with their weights.
fn merge(defaults: &[(String, i64)], set: &PluginSet) -> Vec<(String, i64)> {
    let disabled = |name: &str| set.disabled.iter().any(|d| d.name == name || d.name == "*");
    let custom = |name: &str| set.enabled.iter().find(|e| e.name == name);
    let mut merged: Vec<(String, i64)> = defaults
        .iter()
        .filter(|(name, _)| !disabled(name))
        .map(|(name, weight)| (name.clone(), custom(name).map_or(*weight, |e| e.weight)))
        .collect();
    for new in &set.enabled {
        if !merged.iter().any(|(name, _)| *name == new.name) {
            merged.push((new.name.clone(), new.weight));
        }
    }
    merged
}

/// What the profile says of one point: plugins in the order of their say, those of the point itself first.
fn at_point(all: &[(String, i64)], set: &PluginSet) -> Vec<(String, i64)> {
    let off = |name: &str| set.disabled.iter().any(|d| d.name == name || d.name == "*");
    let own = set.enabled.iter().map(|e| (e.name.clone(), e.weight));
    let named = |name: &str| set.enabled.iter().any(|e| e.name == name);
    let rest = all.iter().filter(|(name, _)| !off(name) && !named(name)).cloned();
    own.chain(rest).collect()
}

fn build(
    name: &str,
    profile: &Profile,
    path: &str,
    registry: &Registry,
    ignored: &BTreeSet<String>,
) -> Result<Framework, ConfigError> {
    let plugins = &profile.plugins;
    let defaults: Vec<(String, i64)> =
        DEFAULTS.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    let all = merge(&defaults, &plugins.multi_point);
    let mut args: BTreeMap<&str, Option<&Value>> = BTreeMap::new();
    for (at, config) in profile.plugin_config.iter().enumerate() {
        if args.insert(&config.name, config.args.as_ref()).is_some() {
            let what = format!("Duplicate value: \"{}\"", config.name);
            return Err(error(format!("{path}.pluginConfig[{at}]"), what));
        }
    }
    let mut made: BTreeMap<String, Points> = BTreeMap::new();
    let sets = [
        &plugins.pre_enqueue,
        &plugins.queue_sort,
        &plugins.pre_filter,
        &plugins.filter,
        &plugins.post_filter,
        &plugins.pre_score,
        &plugins.score,
        &plugins.reserve,
        &plugins.permit,
        &plugins.pre_bind,
        &plugins.bind,
        &plugins.post_bind,
    ];
    let named = sets.iter().flat_map(|set| &set.enabled).map(|e| &e.name);
    for plugin in all.iter().map(|(name, _)| name).chain(named) {
        if made.contains_key(plugin) {
            continue;
        }
        let given = args.get(plugin.as_str()).copied().flatten();
        let with_ignored;
        let given = if plugin == "NodeResourcesFit" && !ignored.is_empty() {
            with_ignored = ignore(given, ignored);
            Some(&with_ignored)
        } else {
            given
        };
        match registry.build(plugin, given) {
            None => {
                return Err(error(format!("{path}.plugins"), format!("plugin \"{plugin}\" does not exist")));
            }
            Some(Err(what)) => {
                return Err(error(
                    format!("{path}.pluginConfig"),
                    format!("initializing plugin \"{plugin}\": {what}"),
                ));
            }
            Some(Ok(points)) => {
                made.insert(plugin.clone(), points);
            }
        }
    }
    if let Some(unused) =
        args.keys().find(|name| !made.contains_key(**name) && registry.build(name, None).is_none())
    {
        return Err(error(format!("{path}.pluginConfig"), format!("plugin \"{unused}\" does not exist")));
    }
    let point = |set: &PluginSet| at_point(&all, set);
    let get = |name: &str| made.get(name);
    if !point(&plugins.queue_sort).iter().any(|(n, _)| get(n).is_some_and(|p| p.queue_sort)) {
        return Err(error(
            format!("{path}.plugins.queueSort"),
            format!("one queue sort plugin required for profile \"{name}\""),
        ));
    }
    if !point(&plugins.bind).iter().any(|(n, _)| get(n).is_some_and(|p| p.binder)) {
        return Err(error(
            format!("{path}.plugins.bind"),
            format!("at least one bind plugin is needed for profile \"{name}\""),
        ));
    }
    let mut framework = Framework::empty(name, Box::new(PrioritySort));
    let of = |set: &PluginSet| {
        point(set).into_iter().filter_map(|(name, weight)| Some((made.get(&name)?, weight)))
    };
    framework.pre_enqueue = of(&plugins.pre_enqueue).filter_map(|(p, _)| p.pre_enqueue.clone()).collect();
    framework.filters = of(&plugins.filter).filter_map(|(p, _)| p.filter.clone()).collect();
    framework.post_filters = of(&plugins.post_filter).filter_map(|(p, _)| p.post_filter.clone()).collect();
    // A weight of 0 is the default, 1.
    framework.scores = of(&plugins.score).filter_map(|(p, w)| Some((p.score.clone()?, w.max(1)))).collect();
    framework.reserves = of(&plugins.reserve).filter_map(|(p, _)| p.reserve.clone()).collect();
    framework.permits = of(&plugins.permit).filter_map(|(p, _)| p.permit.clone()).collect();
    framework.pre_binds = of(&plugins.pre_bind).filter_map(|(p, _)| p.pre_bind.clone()).collect();
    framework.preemption = of(&plugins.post_filter).find_map(|(p, _)| p.preemption);
    framework.hints = made.values().filter_map(|p| Some((p.name, p.hint.clone()?))).collect();
    Ok(framework)
}

/// Resources that an extender looks after and the scheduler is to leave alone.
fn ignore(args: Option<&Value>, ignored: &BTreeSet<String>) -> Value {
    let mut args = args.cloned().unwrap_or_else(|| serde_json::json!({}));
    let list = args["ignoredResources"].as_array().cloned().unwrap_or_default();
    args["ignoredResources"] = list.into_iter().chain(ignored.iter().map(|n| n.as_str().into())).collect();
    args
}
