//! Expressions of admission policies and match conditions: what they may refer to, and how they are compiled.
//!
//! Source: the API documentation of `ValidatingAdmissionPolicy`, `MutatingAdmissionPolicy` and `MatchCondition`
//! (`admissionregistration.k8s.io/v1`), KEP-3488, KEP-3716, KEP-3962.

use std::sync::{Arc, LazyLock};

use super::decl::{Decl, ListKind, Shape};
use super::env::{Env, Program};
use super::error::Issues;
use super::types::Type;

/// What an expression's environment has besides the request and its objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{}` and `JSONPatch{}`.
    pub patches: bool,
}

/// Makes the environments of one policy, variables added one by one.
#[derive(Debug, Clone, Default)]
pub struct Compiler {
    /// What is known of the objects; nothing when there is none.
    base: Option<Env>,
    /// Types of `variables.NAME`, in their order.
    variables: Vec<(Arc<str>, Type)>,
}

/// Name of the type of `variables`.
const VARIABLES: &str = "kubernetes.variables";

impl Compiler {
    /// A compiler without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// A compiler for objects and parameters of declared types.
    pub fn typed(object: &Arc<Decl>, params: Option<&Arc<Decl>>) -> Self {
        let mut env = BASE.clone().declare("object", object).declare("oldObject", object);
        if let Some(params) = params {
            env = env.declare("params", params);
        }
        Self { base: Some(env), variables: Vec::new() }
    }

    /// Compiles an expression that must give one of some types; any when there are none.
    ///
    /// # Errors
    /// What is wrong with it, in Kubernetes' words.
    pub fn compile(&self, source: &str, features: Features, wanted: &[Type]) -> Result<Program, String> {
        let program =
            self.parse(source, features).map_err(|issues| format!("compilation failed: {issues}"))?;
        let found = program.result_type();
        if wanted.is_empty() || *found == Type::Dyn || wanted.contains(found) {
            return Ok(program);
        }
        let wanted: Vec<String> = wanted.iter().map(printed).collect();
        Err(match wanted.as_slice() {
            [one] => format!("must evaluate to {one} but got {}", printed(found)),
            more => format!("must evaluate to one of [{}] but got {}", more.join(" "), printed(found)),
        })
    }

    /// Compiles an expression of any type.
    ///
    /// # Errors
    /// Syntax and type errors, with positions.
    pub fn parse(&self, source: &str, features: Features) -> Result<Program, Issues> {
        self.env(features).compile(source)
    }

    /// Compiles a variable and makes it known to the expressions after it. One that does not compile is known too, so
    /// that its error is told once.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn variable(&mut self, name: &str, source: &str, features: Features) -> Result<Program, String> {
        let program = self.compile(source, features, &[]);
        let ty = program.as_ref().map_or(Type::Dyn, |p| p.result_type().clone());
        self.variables.push((name.into(), ty));
        program
    }

    fn env(&self, features: Features) -> Env {
        let mut env = self.base.clone().unwrap_or_else(|| BASE.clone());
        if features.params && env.variable("params").is_none() {
            env = env.with("params", Type::Dyn);
        }
        if features.authorizer {
            env = env
                .with("authorizer", Type::object("kubernetes.authorization.Authorizer"))
                .with("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"));
        }
        if features.patches {
            env = env.with_mutation();
        }
        if !self.variables.is_empty() {
            env = env.with("variables", Type::object(VARIABLES)).with_fields(VARIABLES, &self.variables);
        }
        env
    }
}

/// A type as these messages print it.
fn printed(ty: &Type) -> String {
    match ty {
        Type::Null => "null_type".into(),
        other => other.to_string(),
    }
}

static BASE: LazyLock<Env> = LazyLock::new(|| {
    Env::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .declare("request", &Arc::new(request().named("kubernetes.AdmissionRequest")))
        .declare("namespaceObject", &NAMESPACE)
});

fn text() -> Decl {
    Decl::scalar(Shape::String, 0, 2)
}

/// `AdmissionRequest` without the objects.
fn request() -> Decl {
    let kind = || Decl::object(vec![("group", text()), ("version", text()), ("kind", text())]);
    let resource = || Decl::object(vec![("group", text()), ("version", text()), ("resource", text())]);
    let texts = || Decl::list(text(), ListKind::Atomic, None);
    Decl::object(vec![
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", text()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", text()),
        ("name", text()),
        ("namespace", text()),
        ("operation", text()),
        (
            "userInfo",
            Decl::object(vec![
                ("username", text()),
                ("uid", text()),
                ("groups", texts()),
                ("extra", Decl::map(texts(), None)),
            ]),
        ),
        ("dryRun", Decl::scalar(Shape::Bool, 0, 4)),
        ("options", Decl::dynamic()),
    ])
}

/// The declaration by which the namespace's JSON is read.
pub fn namespace() -> &'static Decl {
    &NAMESPACE
}

static NAMESPACE: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let texts = || Decl::list(text(), ListKind::Atomic, None);
    let int = || Decl::scalar(Shape::Int, 0, 1);
    let time = || Decl::scalar(Shape::Timestamp, 0, 21);
    let metadata = Decl::object(vec![
        ("name", text()),
        ("generateName", text()),
        ("namespace", text()),
        ("labels", Decl::map(text(), None)),
        ("annotations", Decl::map(text(), None)),
        ("UID", text()),
        ("creationTimestamp", time()),
        ("deletionGracePeriodSeconds", int()),
        ("deletionTimestamp", time()),
        ("generation", int()),
        ("resourceVersion", text()),
        ("finalizers", texts()),
    ]);
    let condition = Decl::object(vec![
        ("status", text()),
        ("type", text()),
        ("lastTransitionTime", time()),
        ("message", text()),
        ("reason", text()),
    ]);
    let decl = Decl::object(vec![
        ("metadata", metadata),
        ("spec", Decl::object(vec![("finalizers", texts())])),
        (
            "status",
            Decl::object(vec![
                ("conditions", Decl::list(condition, ListKind::Atomic, None)),
                ("phase", text()),
            ]),
        ),
    ]);
    Arc::new(decl.named("kubernetes.Namespace"))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_policies_may_say() {
        let mut compiler = Compiler::new();
        let all = Features { params: true, authorizer: true, patches: false };
        compiler.variable("n", "object.spec.replicas + 1", all).unwrap();
        compiler.variable("names", "[request.name]", all).unwrap();
        for (source, features, wanted) in [
            ("object.metadata.name == 'x'", all, ""),
            ("variables.n > 1", all, ""),
            ("variables.names.all(n, n != '')", all, ""),
            ("variables.names > 1", all, "found no matching overload"),
            ("variables.m > 1", all, "undefined field 'm'"),
            ("request.userInfo.extra['a'][0] == 'b'", all, ""),
            ("request.nothing == 1", all, "undefined field 'nothing'"),
            ("namespaceObject.metadata.labels['a'] == 'b'", all, ""),
            ("params.a == 1", Features::default(), "undeclared reference to 'params'"),
            ("authorizer.group('').resource('pods').check('get').allowed()", all, ""),
            ("authorizer.requestResource.check('get').allowed()", all, ""),
            ("'a'", all, "must evaluate to bool but got string"),
        ] {
            let error = compiler.compile(source, features, &[Type::Bool]).err().unwrap_or_default();
            assert!(error.contains(wanted) && error.is_empty() == wanted.is_empty(), "{source}: {error}");
        }
        let patches = Features { patches: true, ..all };
        let list = Type::list(Type::object("JSONPatch"));
        let json =
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]";
        compiler.compile(json, patches, &[list]).unwrap();
        let apply = "Object{spec: Object.spec{replicas: 1}}";
        compiler.compile(apply, patches, &[Type::object("Object")]).unwrap();
    }
}
