//! `--format`: how lists and objects are printed.
//!
//! The language is Go's text/template with the functions that Docker adds to it. A list has a table, the columns of
//! which are such a template too.

use std::{fmt, str::FromStr};

use anyhow::Context;
use gotmpl::{MissingKey, Template, TemplateError, Value};
use serde::Serialize;

use super::{escape, table};

/// What lists say of the option; every verb that has it prints this in its help.
pub const LIST_HELP: &str = "\
'table', 'json', a Go template such as '{{.ID}}', or 'table' and a template";

/// A parsed `--format`.
#[derive(Debug, Clone)]
pub enum Format {
    /// Columns with a heading: the verb's own, or these.
    Table(Option<Parsed>),
    /// One JSON object a line.
    Json,
    /// Whatever the template makes of each object.
    Template(Parsed),
}

/// A template and its text.
#[derive(Clone)]
pub struct Parsed {
    text: String,
    template: Template,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl Default for Format {
    fn default() -> Self {
        Self::Table(None)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(None) => f.write_str("table"),
            Self::Table(Some(columns)) => write!(f, "table {}", columns.text),
            Self::Json => f.write_str("json"),
            Self::Template(template) => f.write_str(&template.text),
        }
    }
}

impl FromStr for Format {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        Ok(match text {
            "" | "table" => Self::Table(None),
            "json" | "{{json .}}" => Self::Json,
            _ => match text.strip_prefix("table ") {
                Some(columns) => Self::Table(Some(Parsed::new(columns.trim())?)),
                None => Self::Template(Parsed::new(text)?),
            },
        })
    }
}

impl Format {
    /// A list of `lines`, each an object of the same fields.
    ///
    /// `columns` is the verb's own table: a field and its heading for each. `headings` are those of further fields.
    pub fn list<T: Serialize>(
        &self,
        columns: &[(&str, &str)],
        headings: &[(&str, &str)],
        lines: &[T],
    ) -> anyhow::Result<String> {
        let own;
        let columns_template = match self {
            Self::Json => {
                let json = lines.iter().map(serde_json::to_string);
                return Ok(json
                    .map(|line| Ok(line? + "\n"))
                    .collect::<Result<_, serde_json::Error>>()?);
            }
            Self::Template(template) => {
                let text = lines.iter().map(|line| Ok(template.render(line)? + "\n"));
                return text.collect();
            }
            Self::Table(Some(template)) => template,
            Self::Table(None) => {
                let fields = columns.iter().map(|(field, _)| format!("{{{{.{field}}}}}"));
                own = Parsed::new(&fields.collect::<Vec<_>>().join("\t"))?;
                &own
            }
        };
        let heads: serde_json::Map<String, serde_json::Value> = columns
            .iter()
            .chain(headings)
            .map(|(field, heading)| ((*field).into(), (*heading).into()))
            .collect();
        let split = |text: String| text.split('\t').map(String::from).collect::<Vec<_>>();
        let head = split(columns_template.render(&heads)?);
        let rows = lines
            .iter()
            .map(|line| Ok(split(columns_template.render(line)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        Ok(table(&head, rows.into_iter()) + "\n")
    }

    /// `objects` one after the other, as JSON indented in an array where nothing else is asked for.
    pub fn objects<T: Serialize>(format: Option<&Self>, objects: &[T]) -> anyhow::Result<String> {
        match format {
            None | Some(Self::Table(None)) => Ok(serde_json::to_string_pretty(objects)? + "\n"),
            Some(Self::Json) => Ok(serde_json::to_string(objects)? + "\n"),
            Some(Self::Template(template) | Self::Table(Some(template))) => {
                let text = objects
                    .iter()
                    .map(|object| Ok(template.render(object)? + "\n"));
                text.collect()
            }
        }
    }
}

impl Parsed {
    fn new(text: &str) -> Result<Self, TemplateError> {
        // A shell passes these on as they are typed.
        let typed = text.replace("\\t", "\t").replace("\\n", "\n");
        let template = Template::new("--format")
            .missing_key(MissingKey::Error)
            .func("json", |arguments| {
                let json = to_json(arguments.first().unwrap_or(&Value::Nil));
                Ok(Value::String(json.to_string().into()))
            })
            .func("join", |arguments| {
                let [Value::List(items), Value::String(separator)] = arguments else {
                    return Err(misused("join LIST SEPARATOR"));
                };
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                Ok(Value::String(items.join(separator).into()))
            })
            .func("split", |arguments| {
                let [Value::String(text), Value::String(separator)] = arguments else {
                    return Err(misused("split TEXT SEPARATOR"));
                };
                let parts = text.split(&**separator);
                Ok(Value::List(
                    parts.map(|part| Value::String(part.into())).collect(),
                ))
            })
            .func("upper", |arguments| change(arguments, str::to_uppercase))
            .func("lower", |arguments| change(arguments, str::to_lowercase))
            .func("truncate", |arguments| {
                let [Value::String(text), length] = arguments else {
                    return Err(misused("truncate TEXT LENGTH"));
                };
                let length = length
                    .as_int()
                    .and_then(|length| usize::try_from(length).ok());
                let length = length.ok_or_else(|| misused("truncate TEXT LENGTH"))?;
                Ok(Value::String(
                    text.chars().take(length).collect::<String>().into(),
                ))
            })
            .parse(&typed)?;
        let text = text.into();
        Ok(Self { text, template })
    }

    fn render(&self, object: &impl Serialize) -> anyhow::Result<String> {
        let rendered = gotmpl::to_value(object)
            .and_then(|value| self.template.execute_to_string(&value))
            .with_context(|| format!("cannot print as {:?}", self.text))?;
        Ok(escape(&rendered))
    }
}

fn misused(usage: &str) -> TemplateError {
    TemplateError::Exec(format!("what it takes is: {usage}"))
}

fn change(arguments: &[Value], change: fn(&str) -> String) -> Result<Value, TemplateError> {
    match arguments {
        [Value::String(text)] => Ok(Value::String(change(text).into())),
        _ => Err(misused("one text")),
    }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::String(value) => value.to_string().into(),
        Value::List(values) => values.iter().map(to_json).collect(),
        Value::Map(fields) => fields
            .iter()
            .map(|(name, value)| (name.to_string(), to_json(value)))
            .collect(),
        Value::Nil | Value::Function(_) => serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(format: &str) -> anyhow::Result<String> {
        let lines = [
            json!({"ID": "a", "Tags": ["x", "y"]}),
            json!({"ID": "bcd", "Tags": []}),
        ];
        format
            .parse::<Format>()?
            .list(&[("ID", "IMAGE ID")], &[("Tags", "TAGS")], &lines)
    }

    #[test]
    fn lists_are_printed_as_asked() {
        for (format, printed) in [
            ("table", "IMAGE ID\na\nbcd\n"),
            (
                "json",
                "{\"ID\":\"a\",\"Tags\":[\"x\",\"y\"]}\n{\"ID\":\"bcd\",\"Tags\":[]}\n",
            ),
            ("{{.ID}}", "a\nbcd\n"),
            ("{{json .Tags}} {{upper .ID}}", "[\"x\",\"y\"] A\n[] BCD\n"),
            ("{{range .Tags}}{{.}},{{end}}", "x,y,\n\n"),
            (
                "{{join .Tags \"+\"}}\\t|{{truncate .ID 2}}",
                "x+y\t|a\n\t|bc\n",
            ),
            (
                "table {{.ID}}\\t{{.Tags}}",
                "IMAGE ID   TAGS\na          [x y]\nbcd        []\n",
            ),
        ] {
            assert_eq!(list(format).unwrap(), printed, "{format}");
        }
    }

    #[test]
    fn a_template_that_cannot_work_is_an_error() {
        for format in ["{{.ID", "{{.Nothing}}", "{{join .ID}}", "{{split .Tags 1}}"] {
            assert!(list(format).is_err(), "{format}");
        }
    }

    #[test]
    fn objects_are_printed_as_asked() {
        let objects = [json!({"Id": 1})];
        let print =
            |format: &str| Format::objects(Some(&format.parse().unwrap()), &objects).unwrap();
        assert_eq!(
            Format::objects(None, &objects).unwrap(),
            "[\n  {\n    \"Id\": 1\n  }\n]\n"
        );
        assert_eq!(print("json"), "[{\"Id\":1}]\n");
        assert_eq!(print("{{.Id}}"), "1\n");
    }
}
