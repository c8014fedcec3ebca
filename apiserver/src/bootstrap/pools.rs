//! The custom resource of load balancers' address pools. Pure.

use serde_json::{Value, json};

/// The definition of `loadbalancerippools.hawser.io`.
pub fn definition() -> Value {
    let text = |about: &str| json!({"type": "string", "description": about});
    let selector = |about: &str| {
        json!({"type": "object", "description": about, "x-kubernetes-map-type": "atomic", "properties": {
            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
            "matchExpressions": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {
                "type": "object", "required": ["key", "operator"], "properties": {
                    "key": {"type": "string"},
                    "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                    "values": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"}}}}}})
    };
    // The rules' cost is judged by how long texts may be.
    let short = |about: &str| json!({"type": "string", "maxLength": 64, "description": about});
    let block = json!({"type": "object", "properties": {
            "cidr": short("All addresses of a CIDR but the network's own and, of IPv4, the broadcast address."),
            "start": short("The first address."),
            "stop": short("The last address; the first one if left out.")},
        "x-kubernetes-validations": [
            {"rule": "has(self.cidr) != has(self.start)", "message": "a block is either a cidr or begins with a start"},
            {"rule": "!has(self.stop) || has(self.start)", "message": "a stop needs a start"},
            {"rule": "!has(self.cidr) || isCIDR(self.cidr)", "message": "cidr must be a CIDR", "fieldPath": ".cidr"},
            {"rule": "!has(self.start) || isIP(self.start)", "message": "start must be an IP address", "fieldPath": ".start"},
            {"rule": "!has(self.stop) || isIP(self.stop)", "message": "stop must be an IP address", "fieldPath": ".stop"}]});
    let spec = json!({"type": "object", "required": ["blocks"], "properties": {
        "blocks": {"type": "array", "minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "atomic",
            "description": "The addresses that are given out, in this order.", "items": block},
        "serviceSelector": selector("Only Services with these labels get addresses of the pool."),
        "namespaceSelector": selector("Only Services of namespaces with these labels get addresses of the pool."),
        "disabled": {"type": "boolean", "default": false,
            "description": "Whether nothing more is given out. What was given out stays."}}});
    let condition = json!({"type": "object", "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {"type": {"type": "string"}, "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": {"type": "string"}, "message": {"type": "string"}}});
    let status = json!({"type": "object", "properties": {
        "total": text("How many addresses there are."),
        "used": text("How many of them Services have."),
        "available": text("How many nobody has."),
        "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            "items": condition}}});
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "loadbalancerippools.hawser.io"},
        "spec": {
            "group": "hawser.io",
            "scope": "Cluster",
            "names": {"kind": "LoadBalancerIPPool", "listKind": "LoadBalancerIPPoolList",
                "plural": "loadbalancerippools", "singular": "loadbalancerippool", "shortNames": ["lbippool"]},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Disabled", "boolean", ".spec.disabled"),
                    column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status"),
                    column("Total", "string", ".status.total"),
                    column("Available", "string", ".status.available"),
                    column("Age", "date", ".metadata.creationTimestamp")],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"],
                    "description": "Addresses that Services of the type LoadBalancer get.",
                    "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                        "metadata": {"type": "object"}, "spec": spec, "status": status}}},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use hawser_api::{defaults, validation};

    #[test]
    fn the_definition_is_one_that_the_server_takes() {
        let kind = hawser_api::kinds::find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            .expect("a row");
        let mut object = super::definition();
        defaults::apply(kind, &mut object);
        object["status"] = serde_json::json!({"storedVersions": ["v1alpha1"]});
        assert_eq!(validation::validate_create(kind, &object), []);
    }
}
