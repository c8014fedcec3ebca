use super::*;

fn definition() -> Value {
    json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "conversion": {"strategy": "None"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"color": {"type": "string"}, "size": {"type": "integer"}}},
                "status": {"type": "object"}}}}}]},
        "status": {"storedVersions": ["v1"]}})
}

/// The definition with some values replaced; paths are dotted, numbers are positions.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut crd = definition();
    for (path, value) in changes {
        let pointer = format!("/{}", path.replace('.', "/"));
        let (parent, last) = pointer.rsplit_once('/').expect("a path");
        match crd.pointer_mut(parent).expect("a parent") {
            Value::Object(map) => drop(map.insert(last.to_owned(), value.clone())),
            other => other[last.parse::<usize>().expect("a position")] = value.clone(),
        }
    }
    crd
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

const PROPERTIES: &str = "spec.versions.0.schema.openAPIV3Schema.properties";

#[test]
fn good_definitions_pass() {
    let fields = ("spec.versions.0.selectableFields", json!([{"jsonPath": ".spec.color"}]));
    for changes in [vec![], vec![fields], vec![("spec.scope", json!("Cluster"))]] {
        assert_eq!(texts(&validate_create(&with(&changes))), Vec::<String>::new(), "{changes:?}");
    }
}

#[test]
fn what_is_wrong_is_named_as_kubernetes_names_it() {
    let spec = format!("{PROPERTIES}.spec");
    let list = format!("{PROPERTIES}.l");
    let top = "spec.validation.openAPIV3Schema";
    for (path, value, want) in [
        ("spec.scope", json!("Odd"), "spec.scope: Unsupported value: \"Odd\": supported values: \"Cluster\", \"Namespaced\"".to_owned()),
        ("spec.group", json!("example"), "spec.group: Invalid value: \"example\": should be a domain with at least one dot".into()),
        ("spec.versions.0.schema", Value::Null, "spec.versions[0].schema.openAPIV3Schema: Required value".into()),
        ("spec.versions.0.name", json!("V1"), "spec.versions[0].name: Invalid value: \"V1\"".into()),
        ("spec.versions.0.deprecationWarning", json!("x"), "spec.versions[0].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions".into()),
        ("spec.conversion", json!({"strategy": "Odd"}), "spec.conversion.strategy: Unsupported value: \"Odd\": supported values: \"None\", \"Webhook\"".into()),
        ("spec.conversion", json!({"strategy": "Webhook"}), "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook".into()),
        ("spec.conversion", json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://x"}, "conversionReviewVersions": ["v1"]}}),
            "spec.conversion.webhookClientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]".into()),
        ("spec.versions.0.subresources", json!({"scale": {}}), "spec.subresources.scale.specReplicasPath: Required value".into()),
        ("spec.versions.0.selectableFields", json!([{"jsonPath": ".spec"}]), "spec.selectableFields[0].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.".into()),
        ("spec.versions.0.additionalPrinterColumns", json!([{"name": "a", "type": "x", "jsonPath": ".a"}]), "spec.additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string".into()),
        (&spec, json!({"type": "object", "properties": {"a": {"$ref": "#/x"}}}), format!("{top}.properties[spec].properties[a].$ref: Forbidden: $ref is not supported")),
        (&spec, json!({"type": "oddity"}), format!("{top}.properties[spec].type: Unsupported value: \"oddity\"")),
        (&list, json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}), format!("{top}.properties[l].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map")),
        (&list, json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
            format!("{top}.properties[l].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property")),
        (&spec, json!({"type": "object", "x-kubernetes-validations": [{"rule": " "}]}), format!("{top}.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified")),
        ("spec.versions.0.schema.openAPIV3Schema.oneOf", json!([{"required": ["spec"]}]), format!("{top}: Invalid value: ")),
        ("status.storedVersions", json!(["v1", "v0"]), "status.storedVersions[1]: Invalid value: \"v0\": missing from spec.versions; v0".into()),
    ] {
        let found = texts(&validate_create(&with(&[(path, value.clone())])));
        assert!(found.iter().any(|f| f.starts_with(&want)), "{path} = {value}: {found:?}, not {want}");
    }
}

#[test]
fn updates_keep_names_and_are_lenient_with_what_was_there() {
    let old = definition();
    let kind = [("spec.names.kind", json!("Other"))];
    assert!(validate_update(&with(&kind), &old).is_empty(), "not established yet");
    let mut established = old.clone();
    established["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    assert_eq!(
        texts(&validate_update(&with(&kind), &established)),
        ["spec.names.kind: Invalid value: \"Other\": field is immutable"]
    );
    let group = [("spec.group", json!("other.com"))];
    assert_eq!(
        texts(&validate_update(&with(&group), &old)),
        ["spec.group: Invalid value: \"other.com\": field is immutable"]
    );
    let list = format!("{PROPERTIES}.l");
    let nullable = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string", "nullable": true}});
    let broken = with(&[(&list, nullable)]);
    assert_eq!(validate_update(&broken, &old).len(), 1);
    assert!(validate_update(&broken, &broken).is_empty());
}

#[test]
fn approval_of_community_groups() {
    assert!(is_protected("k8s.io") && is_protected("x.kubernetes.io") && !is_protected("notk8s.io"));
    for (text, want) in [
        ("", Approval::Missing),
        ("unapproved, experimental", Approval::Bypassed),
        ("https://github.com/x/pull/1", Approval::Approved),
        ("yes", Approval::Invalid),
    ] {
        let crd = json!({"metadata": {"annotations": {APPROVED: text}}});
        assert_eq!(approval_of(&crd).0, want, "{text}");
    }
}

#[test]
fn unknown_formats_are_warned_about_once() {
    let format = |f: &str| with(&[(&format!("{PROPERTIES}.a"), json!({"type": "string", "format": f}))]);
    assert_eq!(warnings(&format("odd"), None), ["unrecognized format \"odd\""]);
    assert!(warnings(&format("date-time"), None).is_empty());
    assert!(warnings(&format("odd"), Some(&format("odd"))).is_empty());
}
