//! Which plugins there are, how each is made from its arguments, and what the default profile has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::framework::{
    Filter, Framework, Hint, Permit, Plugin, PostFilter, PreBind, PreEnqueue, Reserve, Score,
};
use crate::pod::SpreadConstraint;
use crate::preempt;
use crate::selector::{NodeTerm, NodeTerms};

/// The plugins of the default profile in their order, with their weights (0: it does not score).
pub const DEFAULTS: [(&str, i64); 21] = [
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 2),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
    ("NodeDeclaredFeatures", 0),
    ("GangScheduling", 0),
];

/// A plugin, at each extension point at which it has a say.
#[derive(Default)]
pub struct Points {
    pub name: &'static str,
    pub queue_sort: bool,
    pub binder: bool,
    pub pre_enqueue: Option<Arc<dyn PreEnqueue>>,
    pub filter: Option<Arc<dyn Filter>>,
    pub post_filter: Option<Arc<dyn PostFilter>>,
    pub score: Option<Arc<dyn Score>>,
    pub reserve: Option<Arc<dyn Reserve>>,
    pub permit: Option<Arc<dyn Permit>>,
    pub pre_bind: Option<Arc<dyn PreBind>>,
    pub preemption: Option<preempt::Args>,
    pub(crate) hint: Option<Hint>,
}

/// Says at which points a plugin has a say.
pub struct Built<P> {
    plugin: Arc<P>,
    points: Points,
}

impl<P: Plugin + 'static> Built<P> {
    /// At none yet.
    pub fn new(plugin: P) -> Self {
        let plugin = Arc::new(plugin);
        let hints = plugin.clone();
        let hint: Hint = Arc::new(move |pod, event, snapshot| hints.wakes(pod, event, snapshot));
        let points = Points { name: plugin.name(), hint: Some(hint), ..Points::default() };
        Built { plugin, points }
    }

    /// It says whether pods may enter the queue.
    pub fn pre_enqueue(mut self) -> Self
    where
        P: PreEnqueue,
    {
        self.points.pre_enqueue = Some(self.plugin.clone());
        self
    }

    /// It says whether pods fit.
    pub fn filter(mut self) -> Self
    where
        P: Filter,
    {
        self.points.filter = Some(self.plugin.clone());
        self
    }

    /// It may help a pod that fits nowhere.
    pub fn post_filter(mut self) -> Self
    where
        P: PostFilter,
    {
        self.points.post_filter = Some(self.plugin.clone());
        self
    }

    /// It says which node is better.
    pub fn score(mut self) -> Self
    where
        P: Score,
    {
        self.points.score = Some(self.plugin.clone());
        self
    }

    /// It keeps account of choices.
    pub fn reserve(mut self) -> Self
    where
        P: Reserve,
    {
        self.points.reserve = Some(self.plugin.clone());
        self
    }

    /// It can hold back a binding.
    pub fn permit(mut self) -> Self
    where
        P: Permit,
    {
        self.points.permit = Some(self.plugin.clone());
        self
    }

    /// It prepares a binding.
    pub fn pre_bind(mut self) -> Self
    where
        P: PreBind,
    {
        self.points.pre_bind = Some(self.plugin.clone());
        self
    }

    /// That is all.
    pub fn done(self) -> Points {
        self.points
    }
}

type Factory = Box<dyn Fn(Option<&Value>) -> Result<Points, String> + Send + Sync>;

/// All plugins there are.
pub struct Registry(BTreeMap<&'static str, Factory>);

impl Registry {
    /// The plugins of this crate.
    pub fn new() -> Self {
        let mut registry = Registry(BTreeMap::new());
        registry.plain("SchedulingGates", || Built::new(SchedulingGates).pre_enqueue().done());
        registry.plain("PrioritySort", || Points {
            name: "PrioritySort",
            queue_sort: true,
            ..Points::default()
        });
        registry.plain("DefaultBinder", || Points {
            name: "DefaultBinder",
            binder: true,
            ..Points::default()
        });
        registry.plain("NodeUnschedulable", || Built::new(NodeUnschedulable).filter().done());
        registry.plain("NodeName", || Built::new(NodeName).filter().done());
        registry.plain("TaintToleration", || Built::new(TaintToleration).filter().score().done());
        registry.plain("NodePorts", || Built::new(NodePorts).filter().done());
        registry.plain("VolumeRestrictions", || Built::new(VolumeRestrictions).filter().done());
        registry.plain("NodeVolumeLimits", || Built::new(NodeVolumeLimits).filter().done());
        registry.plain("VolumeZone", || Built::new(VolumeZone).filter().done());
        registry.plain("ImageLocality", || Built::new(ImageLocality).score().done());
        registry.plain("NodeDeclaredFeatures", || Built::new(NodeDeclaredFeatures).filter().done());
        registry.plain("GangScheduling", || Built::new(GangScheduling).pre_enqueue().done());
        registry.add("DynamicResources", |args| {
            let built = Built::new(dynamic_resources(read(args)?)?).pre_enqueue().filter().post_filter();
            Ok(built.score().reserve().pre_bind().done())
        });
        registry
            .add("NodeAffinity", |args| Ok(Built::new(node_affinity(read(args)?)).filter().score().done()));
        registry.add("NodeResourcesFit", |args| Ok(Built::new(fit(read(args)?)?).filter().score().done()));
        registry.add("NodeResourcesBalancedAllocation", |args| {
            let args: BalancedArgs = read(args)?;
            Ok(Built::new(BalancedAllocation { resources: resources(args.resources)? }).score().done())
        });
        registry.add("VolumeBinding", |args| {
            let args: VolumeBindingArgs = read(args)?;
            let timeout = Duration::from_secs(args.bind_timeout_seconds.unwrap_or(600));
            Ok(Built::new(VolumeBinding { timeout }).filter().reserve().pre_bind().done())
        });
        registry
            .add("PodTopologySpread", |args| Ok(Built::new(spread(read(args)?)?).filter().score().done()));
        registry.add("InterPodAffinity", |args| {
            let args: InterPodAffinityArgs = read(args)?;
            let weight = args.hard_pod_affinity_weight.unwrap_or(1);
            if !(0..=100).contains(&weight) {
                return Err("hardPodAffinityWeight: not in valid range [0, 100]".into());
            }
            let plugin = InterPodAffinity {
                hard_pod_affinity_weight: weight,
                ignore_preferred_terms_of_existing_pods: args.ignore_preferred_terms_of_existing_pods,
            };
            Ok(Built::new(plugin).filter().score().done())
        });
        registry.add("DefaultPreemption", |args| {
            let args: DefaultPreemptionArgs = read(args)?;
            let preemption = preempt::Args {
                candidates_percent: args.min_candidate_nodes_percentage.unwrap_or(10),
                min_candidates: args.min_candidate_nodes_absolute.unwrap_or(100),
            };
            if preemption.candidates_percent > 100 {
                return Err("minCandidateNodesPercentage: not in valid range [0, 100]".into());
            }
            if preemption.candidates_percent == 0 && preemption.min_candidates == 0 {
                return Err(
                    "minCandidateNodesPercentage and minCandidateNodesAbsolute cannot both be zero".into()
                );
            }
            Ok(Points { name: "DefaultPreemption", preemption: Some(preemption), ..Points::default() })
        });
        registry
    }

    /// Adds a plugin of one's own, made from its arguments in `pluginConfig`.
    pub fn add(
        &mut self,
        name: &'static str,
        make: impl Fn(Option<&Value>) -> Result<Points, String> + Send + Sync + 'static,
    ) {
        self.0.insert(name, Box::new(make));
    }

    fn plain(&mut self, name: &'static str, make: impl Fn() -> Points + Send + Sync + 'static) {
        self.add(name, move |args| match args {
            None => Ok(make()),
            Some(_) => Err("takes no arguments".into()),
        });
    }

    /// Makes a plugin. `None`: there is none of this name.
    pub fn build(&self, name: &str, args: Option<&Value>) -> Option<Result<Points, String>> {
        self.0.get(name).map(|make| make(args))
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry::new()
    }
}

/// The profile that pods get by default, with kube-scheduler's weights.
pub fn default_profile() -> Framework {
    let registry = Registry::new();
    let mut framework = Framework::empty("default-scheduler", Box::new(PrioritySort));
    for (name, weight) in DEFAULTS {
        if let Some(Ok(points)) = registry.build(name, None) {
            framework.add(points, weight.max(1));
        }
    }
    framework
}

impl Framework {
    /// Adds a plugin at every point at which it has a say, after those that are there.
    pub fn add(&mut self, points: Points, weight: i64) {
        self.pre_enqueue.extend(points.pre_enqueue);
        self.filters.extend(points.filter);
        self.post_filters.extend(points.post_filter);
        self.scores.extend(points.score.map(|score| (score, weight)));
        self.reserves.extend(points.reserve);
        self.permits.extend(points.permit);
        self.pre_binds.extend(points.pre_bind);
        self.preemption = points.preemption.or(self.preemption);
        if let Some(hint) = points.hint {
            self.hints.insert(points.name, hint);
        }
    }
}

fn read<T: DeserializeOwned + Default>(args: Option<&Value>) -> Result<T, String> {
    let Some(args) = args else { return Ok(T::default()) };
    let mut args = args.clone();
    if let Some(map) = args.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    serde_json::from_value(args).map_err(|error| error.to_string())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DefaultPreemptionArgs {
    min_candidate_nodes_percentage: Option<usize>,
    min_candidate_nodes_absolute: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DynamicResourcesArgs {
    /// Only checked: a search is limited by its steps.
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

fn dynamic_resources(args: DynamicResourcesArgs) -> Result<DynamicResources, String> {
    let nanos = |name: &str, text: Option<&String>| {
        let read = |text: &String| {
            hawser_api::time::parse_go_duration(text)
                .ok_or(format!("{name}: time: invalid duration {text:?}"))
        };
        text.map(read).transpose()
    };
    if nanos("filterTimeout", args.filter_timeout.as_ref())?.is_some_and(|nanos| nanos < 0) {
        return Err("filterTimeout: must be zero or positive".into());
    }
    let mut plugin = DynamicResources::default();
    if let Some(nanos) = nanos("bindingTimeout", args.binding_timeout.as_ref())? {
        let longest = u64::try_from(nanos).map(Duration::from_nanos).unwrap_or_default();
        if longest < Duration::from_secs(1) {
            return Err("bindingTimeout: must be at least 1 second".into());
        }
        plugin.binding_timeout = longest;
    }
    Ok(plugin)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InterPodAffinityArgs {
    hard_pod_affinity_weight: Option<i32>,
    #[serde(default)]
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeBindingArgs {
    bind_timeout_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeAffinityArgs {
    added_affinity: Option<k8s_openapi::api::core::v1::NodeAffinity>,
}

fn node_affinity(args: NodeAffinityArgs) -> NodeAffinity {
    let added = args.added_affinity.unwrap_or_default();
    let preferred = added.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
    NodeAffinity {
        added_required: added
            .required_during_scheduling_ignored_during_execution
            .as_ref()
            .map(NodeTerms::new),
        added_preferred: preferred.iter().map(|t| (t.weight, NodeTerm::new(&t.preference))).collect(),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BalancedArgs {
    #[serde(default)]
    resources: Vec<ResourceSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceSpec {
    name: String,
    #[serde(default)]
    weight: i64,
}

/// A weight of 0 is the default, 1.
fn resources(specs: Vec<ResourceSpec>) -> Result<Vec<Weighted>, String> {
    if specs.is_empty() {
        return Ok(node_resources::default_resources());
    }
    if let Some(bad) = specs.iter().find(|s| !(0..=100).contains(&s.weight)) {
        return Err(format!(
            "resource weight of {} should be a positive value, got: {}",
            bad.name, bad.weight
        ));
    }
    Ok(specs.into_iter().map(|s| Weighted { name: s.name.into(), weight: s.weight.max(1) }).collect())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    #[serde(default)]
    scoring_strategy: ScoringStrategy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringStrategy {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    resources: Vec<ResourceSpec>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ratio {
    #[serde(default)]
    shape: Vec<ShapePoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ShapePoint {
    utilization: i64,
    /// 0 to 10.
    score: i64,
}

fn fit(args: FitArgs) -> Result<NodeResourcesFit, String> {
    let strategy = match args.scoring_strategy.kind.as_str() {
        "" | "LeastAllocated" => Strategy::LeastAllocated,
        "MostAllocated" => Strategy::MostAllocated,
        "RequestedToCapacityRatio" => {
            let shape = args.scoring_strategy.requested_to_capacity_ratio.unwrap_or_default().shape;
            if shape.is_empty() {
                return Err(
                    "scoringStrategy.requestedToCapacityRatio.shape: at least one point must be specified"
                        .into(),
                );
            }
            if !shape.windows(2).all(|w| w[0].utilization < w[1].utilization)
                || shape.iter().any(|p| !(0..=100).contains(&p.utilization) || !(0..=10).contains(&p.score))
            {
                return Err(
                    "scoringStrategy.requestedToCapacityRatio.shape: utilization values must be sorted in \
                            increasing order between 0 and 100, scores between 0 and 10"
                        .into(),
                );
            }
            Strategy::RequestedToCapacityRatio(
                shape.into_iter().map(|p| (p.utilization, p.score * 10)).collect(),
            )
        }
        other => return Err(format!("scoringStrategy.type: Unsupported value: \"{other}\"")),
    };
    Ok(NodeResourcesFit {
        strategy,
        resources: resources(args.scoring_strategy.resources)?,
        ignored: args.ignored_resources.into_iter().collect(),
        ignored_groups: args.ignored_resource_groups.into_iter().collect(),
    })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpreadArgs {
    #[serde(default)]
    default_constraints: Vec<k8s_openapi::api::core::v1::TopologySpreadConstraint>,
    #[serde(default)]
    defaulting_type: String,
}

fn spread(args: SpreadArgs) -> Result<PodTopologySpread, String> {
    match args.defaulting_type.as_str() {
        "" | "System" if args.default_constraints.is_empty() => Ok(PodTopologySpread::system_defaults()),
        "" | "System" => {
            Err("defaultingType: Invalid value: \"System\": when .defaultConstraints are specified".into())
        }
        "List" => {
            if args.default_constraints.iter().any(|c| c.label_selector.is_some()) {
                return Err(
                    "defaultConstraints.labelSelector: Forbidden: constraint must not define a selector, as \
                            they deduced for each pod"
                        .into(),
                );
            }
            let constraints = args.default_constraints.iter();
            let none = crate::selector::Labels::new();
            Ok(PodTopologySpread::with_defaults(
                constraints.map(|c| SpreadConstraint::new(c, &none)).collect(),
            ))
        }
        other => Err(format!("defaultingType: Unsupported value: \"{other}\"")),
    }
}
