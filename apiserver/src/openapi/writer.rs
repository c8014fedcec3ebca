//! Documents as bytes, written part by part: the whole of one never stands in memory as values.

use serde_json::Value;

use super::gnostic;

/// JSON or protobuf.
pub(super) enum Writer {
    Json(Json),
    Protobuf(gnostic::Writer),
}

impl Writer {
    /// Begins a field that is an object of its own.
    pub(super) fn open(&mut self, name: &str) {
        match self {
            Self::Json(json) => json.open(name),
            Self::Protobuf(writer) => writer.open(name),
        }
    }

    /// A field of the object that is open.
    pub(super) fn put(&mut self, name: &str, value: &Value) {
        match self {
            Self::Json(json) => json.put(name, value),
            Self::Protobuf(writer) => writer.put(name, value),
        }
    }

    /// Ends what [`Writer::open`] began.
    pub(super) fn close(&mut self) {
        match self {
            Self::Json(json) => json.out.push(b'}'),
            Self::Protobuf(writer) => writer.close(),
        }
    }

    /// The document.
    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            Self::Json(mut json) => {
                json.out.push(b'}');
                json.out
            }
            Self::Protobuf(writer) => writer.finish(),
        }
    }
}

/// JSON text on its way.
pub(super) struct Json {
    out: Vec<u8>,
}

impl Json {
    pub(super) fn new() -> Self {
        Self { out: vec![b'{'] }
    }

    fn key(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        // Writing into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.out, name);
        self.out.push(b':');
    }

    fn open(&mut self, name: &str) {
        self.key(name);
        self.out.push(b'{');
    }

    fn put(&mut self, name: &str, value: &Value) {
        self.key(name);
        let _ = serde_json::to_writer(&mut self.out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_has_its_commas() {
        let mut writer = Writer::Json(Json::new());
        writer.put("a", &json!({}));
        writer.open("b");
        writer.close();
        writer.open("c");
        writer.put("d", &json!([1]));
        writer.put("e", &json!("{"));
        writer.close();
        let value: Value = serde_json::from_slice(&writer.finish()).expect("json");
        assert_eq!(value, json!({"a": {}, "b": {}, "c": {"d": [1], "e": "{"}}));
    }
}
